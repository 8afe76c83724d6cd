//! What is due is freed in a section.
use percpu::Unpinned;
use rcu::kernel::Domain;

fn free(domain: &Domain, ctx: &Unpinned<'_>) {
    let mut pin = ctx.pin();
    let _section = domain.read(&pin);
    domain.tick(&mut pin);
}

fn main() {}
