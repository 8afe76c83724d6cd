//! What one domain's readers may have found is given to another domain.
use rcu::{Ptr, domain};

domain!(static DOMAIN: Brand);
static AT: Ptr<String, Brand> = Ptr::none();

domain!(static OTHER: Other);

fn main() {
    let reader = OTHER.register();
    if let Some(old) = AT.take(&mut ()) {
        reader.call(old);
    }
}
