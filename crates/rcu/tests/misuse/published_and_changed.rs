//! What was published is changed by who has made it.
use rcu::{Ptr, domain};

domain!(static DOMAIN: Brand);
static AT: Ptr<String, Brand> = Ptr::none();

fn main() {
    let mut value = Box::new(String::new());
    AT.assign(value, &mut ()).into_iter().for_each(|old| old.leak());
    value.push('x');
}
