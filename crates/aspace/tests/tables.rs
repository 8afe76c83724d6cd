//! Page tables come and go while CPUs walk them: pages far from each other are mapped, used and unmapped by all CPUs at
//! once, so that there are many tables and few that are needed, under the checker (T1 to T5).

mod machine;

use std::sync::atomic::{AtomicU64, Ordering};

use aspace::{AddressSpace, Error, Fault, Placement};
use machine::{RW, Random, Sim, anonymous, page, range};
use owned::Use;
use percpu::Unpinned;

/// Pages that are used, each in a leaf table of its own, in several directories.
const SPOTS: u64 = 400;

fn spot(i: u64) -> u64 {
    0x1000 + (i << 9) + ((i % 7) << 27) + ((i % 3) << 18)
}

/// One CPU's `steps`, each at a spot of its choice.
fn wander(sim: &'static Sim, space: &dyn AddressSpace, random: &mut Random, steps: u64, ctx: &Unpinned<'_>) {
    sim.enter(space, ctx);
    for stamp in 0..steps {
        let at = spot(random.below(SPOTS));
        match random.below(8) {
            0..3 => match space.map(Placement::FixedNoReplace(page(at)), 1, anonymous(RW), ctx) {
                Ok(_) => drop(sim.store(space, page(at), stamp, ctx)),
                Err(error) => assert_eq!(error, Error::Exists),
            },
            3..6 => assert_eq!(space.unmap(range(at, 1), ctx), Ok(())),
            6 => {
                let seen = sim.load(space, page(at), ctx);
                assert!(matches!(seen, Ok(_) | Err(Fault::NoMapping)), "{seen:?}");
            }
            _ => {
                sim.leave(space, ctx);
                sim.enter(space, ctx);
            }
        }
        for _ in 0..2 {
            sim.stir(range(spot(random.below(SPOTS)), 1), |n| random.below(n));
        }
        sim.audit(space, range(spot(random.below(SPOTS)), 1), ctx);
    }
    sim.leave(space, ctx);
}

#[test]
fn no_table_is_reused_while_a_cpu_may_walk_it() {
    let most = AtomicU64::new(0);
    for (cpus, seed) in [(2, 1), (4, 2), (8, 3)] {
        let sim = Sim::new(cpus, 1 << 14);
        let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
        sim.cpus.run(|cpu, ctx| {
            let mut random = Random::new(seed, cpu.index());
            wander(sim, &*space, &mut random, 8_000 / cpus as u64, &ctx);
            most.fetch_max(space.usage(&ctx).table_pages, Ordering::Relaxed);
        });
        sim.cpus.on(0, |ctx| space.clear(&ctx));
        assert_eq!(sim.owned(), [0; Use::COUNT], "tables were not given back");
    }
    println!("at most {} table pages", most.load(Ordering::Relaxed));
}
