//! A retired object is turned back into a box.
use rcu::{Ptr, domain};

domain!(static DOMAIN: Brand);
static AT: Ptr<String, Brand> = Ptr::none();

fn main() {
    if let Some(old) = AT.take(&mut ()) {
        drop(old.into_inner());
    }
}
