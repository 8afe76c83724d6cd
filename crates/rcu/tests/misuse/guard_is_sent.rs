//! A section moves to another thread.
use rcu::{Ptr, domain};

domain!(static DOMAIN: Brand);
static AT: Ptr<String, Brand> = Ptr::none();

fn main() {
    let reader = DOMAIN.register();
    let section = reader.read();
    std::thread::scope(|scope| {
        scope.spawn(move || AT.load(&section));
    });
}
