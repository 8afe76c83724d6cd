//! A CPU begins to idle in a section: periods would not wait for it.
use percpu::Unpinned;
use rcu::kernel::Domain;

fn idle(domain: &Domain, ctx: &Unpinned<'_>) {
    let mut pin = ctx.pin();
    let section = domain.read(&pin);
    domain.idle_enter(&mut pin);
    drop(section);
}

fn main() {}
