//! A routing table: threads look addresses up in it, without a lock, while another one changes routes.
//!
//!     cargo run --release -p quire-bonsai --features std --example routes
//!
//! A route is for the addresses from its first one to the next route's. Whoever looks an address up wants the route that begins at
//! or below it: the floor.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use bonsai::{BonsaiMap, Entry};
use rcu::user;

rcu::domain!(static READERS: Readers);

/// Where packets go, and the first address of the route, so that an answer can be checked.
struct Hop {
    first: u32,
    port: u16,
}

type Routes = BonsaiMap<u32, Hop, &'static user::Domain<Readers>>;

/// Routes of 256 addresses each.
const ROUTES: u32 = 10_000;
const UPDATES: u32 = 200_000;

fn entry(route: u32, port: u16) -> Box<Entry<Hop>> {
    Entry::new(Hop { first: route << 8, port })
}

/// Looks addresses up until it is told to stop; how many, and the sum of the ports, which is used for nothing.
fn look_up(routes: &Routes, stop: &AtomicBool, mut random: u32) -> (u64, u64) {
    let reader = READERS.register();
    let (mut count, mut ports) = (0, 0);
    // Relaxed: nothing follows from it.
    while !stop.load(Ordering::Relaxed) {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let address = (random >> 8) % (ROUTES << 8);
        let section = reader.read();
        // The first route stays.
        let (_, hop) = routes.read(&section).floor(address).expect("there is a route");
        assert!(hop.first <= address, "a route that begins above the address");
        count += 1;
        ports += u64::from(hop.port);
    }
    (count, ports)
}

fn main() {
    let routes = Routes::new(&READERS);
    let reader = READERS.register();
    routes.write(&reader).build((0..ROUTES).map(|n| (n << 8, entry(n, n as u16)))).expect("memory");
    let stop = AtomicBool::new(false);
    let (looks, ports) = thread::scope(|scope| {
        let readers = [1, 2].map(|seed| {
            scope.spawn({
                let (routes, stop) = (&routes, &stop);
                move || look_up(routes, stop, seed)
            })
        });
        for update in 0..UPDATES {
            let route = 1 + update.wrapping_mul(7919) % (ROUTES - 1);
            let mut writer = routes.write(&reader);
            match update % 3 {
                0 => drop(writer.remove(route << 8)),
                1 => drop(writer.replace(route << 8, entry(route, update as u16))),
                _ => drop(writer.insert(route << 8, entry(route, update as u16))),
            }
        }
        stop.store(true, Ordering::Relaxed);
        readers
            .map(|reader| reader.join().expect("no answer was wrong"))
            .into_iter()
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    });
    let left = routes.write(&reader).len();
    println!("{looks} look-ups beside {UPDATES} updates; {left} routes are left (ports add up to {ports})");
}
