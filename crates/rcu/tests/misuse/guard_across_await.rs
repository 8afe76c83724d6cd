//! A section lives across an await, in a future that may move.
use rcu::{Ptr, Global};

static AT: Ptr<String, Global> = Ptr::none();

async fn later() {}

fn spawn(_: impl Future + Send) {}

fn main() {
    spawn(async {
        let section = rcu::read();
        later().await;
        println!("{:?}", AT.load(&section));
    });
}
