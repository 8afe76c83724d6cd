//! A member says that it is in no section, in one.
use rcu::{Ptr, qsbr};

qsbr!(static DOMAIN: Brand, 2);
static AT: Ptr<String, Brand> = Ptr::none();

fn main() {
    let mut member = DOMAIN.register().unwrap();
    let section = member.read();
    member.quiescent();
    println!("{:?}", AT.load(&section));
}
