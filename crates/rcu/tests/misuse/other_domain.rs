//! A pointer of one domain is read in a section of another.
use rcu::{Ptr, domain};

domain!(static DOMAIN: Brand);
static AT: Ptr<String, Brand> = Ptr::none();

domain!(static OTHER: Other);

fn main() {
    let reader = OTHER.register();
    let section = reader.read();
    println!("{:?}", AT.load(&section));
}
