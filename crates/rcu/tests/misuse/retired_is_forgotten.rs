//! A retired object is not looked at.
#![deny(unused_must_use)]

use rcu::{Ptr, domain};

domain!(static DOMAIN: Brand);
static AT: Ptr<String, Brand> = Ptr::none();

fn main() {
    AT.take(&mut ());
}
