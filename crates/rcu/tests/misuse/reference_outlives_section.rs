//! What was found is used after the section.
use rcu::{Ptr, domain};

domain!(static DOMAIN: Brand);
static AT: Ptr<String, Brand> = Ptr::none();

fn main() {
    let reader = DOMAIN.register();
    let section = reader.read();
    let found = AT.load(&section);
    drop(section);
    println!("{found:?}");
}
