//! A reader moves to another thread.
use rcu::{Ptr, domain};

domain!(static DOMAIN: Brand);
static AT: Ptr<String, Brand> = Ptr::none();

fn main() {
    let reader = DOMAIN.register();
    std::thread::scope(|scope| {
        scope.spawn(move || AT.load(&reader.read()).is_some());
    });
}
