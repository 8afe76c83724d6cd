//! A section goes on after its thread may sleep and move to another CPU.
use percpu::Unpinned;
use rcu::kernel::Domain;

fn sleep(domain: &Domain, ctx: &Unpinned<'_>) {
    let pin = ctx.pin();
    let section = domain.read(&pin);
    drop(pin);
    ctx.park();
    println!("{section:?}");
}

fn main() {}
