//! Waiting for all sections to end, in one.
use rcu::{Ptr, domain};

domain!(static DOMAIN: Brand);
static AT: Ptr<String, Brand> = Ptr::none();

fn main() {
    let mut reader = DOMAIN.register();
    let section = reader.read();
    reader.synchronize();
    println!("{:?}", AT.load(&section));
}
