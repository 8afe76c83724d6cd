//! A section of the kernel's domain moves to another thread.
use percpu::Unpinned;
use rcu::kernel::Domain;

fn send(domain: &Domain, ctx: &Unpinned<'_>) {
    let pin = ctx.pin();
    let section = domain.read(&pin);
    std::thread::scope(|threads| {
        threads.spawn(move || drop(section));
    });
}

fn main() {}
