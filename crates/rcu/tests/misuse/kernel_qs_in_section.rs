//! A CPU reports that it is in no section, in one.
use percpu::Unpinned;
use rcu::kernel::Domain;

fn report(domain: &Domain, ctx: &Unpinned<'_>) {
    let mut pin = ctx.pin();
    let section = domain.read(&pin);
    domain.qs(&mut pin);
    drop(section);
}

fn main() {}
