//! Which backends must work here. Tests leave out what a kernel refuses, so that they run anywhere; without this they
//! would also pass where everything but signals broke.

use vmprim::Backend;

/// The variable that lists them by name, with commas between.
const MUST: &str = "VMPRIM_MUST";

/// The backends that must work: what `VMPRIM_MUST` lists, else what this Linux has by its version, if it gives
/// everybody userfaultfd at all.
fn must() -> Vec<Backend> {
    let Ok(names) = std::env::var(MUST) else { return of_this_linux() };
    let named = |name: &str| {
        let known = Backend::ALL.into_iter().find(|backend| backend.name() == name);
        known.unwrap_or_else(|| panic!("{MUST} has no backend {name:?}"))
    };
    names.split(',').filter(|name| !name.is_empty()).map(named).collect()
}

/// Whether it must work.
pub fn is_must(backend: Backend) -> bool {
    must().iter().any(|one| one.name() == backend.name())
}

fn of_this_linux() -> Vec<Backend> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.trim().split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let mut found = vec![Backend::Signal];
    if version >= (6, 4) && has_userfaultfd() {
        found.extend([Backend::UffdWp, Backend::UffdView, Backend::UffdThread { threads: 1 }]);
    }
    if version >= (6, 7) && has_userfaultfd() {
        found.push(Backend::AsyncDirty);
    }
    found
}

/// Whether the call is there: old kernels, other ones and filters of containers refuse it.
fn has_userfaultfd() -> bool {
    const USER_MODE_ONLY: libc::c_long = 1;
    // SAFETY: numbers; what it returns is a descriptor of ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::c_long::from(libc::O_CLOEXEC) | USER_MODE_ONLY);
        fd >= 0 && libc::close(fd as i32) == 0
    }
}
