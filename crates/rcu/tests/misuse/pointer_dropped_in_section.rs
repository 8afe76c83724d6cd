//! The pointer, and with it the object, goes while what was found is in use.
use rcu::{Ptr, domain};

domain!(static DOMAIN: Brand);

fn main() {
    let at = Ptr::<String, Brand>::new(Box::new(String::new()));
    let reader = DOMAIN.register();
    let section = reader.read();
    let found = at.load(&section);
    drop(at);
    println!("{found:?}");
}
