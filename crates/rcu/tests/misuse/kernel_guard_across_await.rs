//! A section of the kernel's domain lives across an `await` of a future that may move to another thread.
use rcu::kernel::Guard;

fn spawn<T: Future + Send>(_: T) {}

async fn work(section: Guard<'_>) {
    async {}.await;
    drop(section);
}

fn start(section: Guard<'static>) {
    spawn(work(section));
}

fn main() {}
