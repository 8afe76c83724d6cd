//! What must stay on its thread is retired.
use std::rc::Rc;

use rcu::{Ptr, domain};

domain!(static DOMAIN: Brand);

fn main() {
    let at = Ptr::<Rc<u8>, Brand>::new(Box::new(Rc::new(1)));
    if let Some(old) = at.take(&mut ()) {
        DOMAIN.register().call(old);
    }
}
