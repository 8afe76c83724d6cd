//! What of all this works here, for people.

use std::fmt;

use crate::{
    error::{Backend, Errno, Needs, Reason},
    guard, probe, sys,
};

/// What works here, and why the rest does not.
#[derive(Clone, Debug)]
pub struct Report {
    /// Backend, the memory it was tried on, whether system calls into protected pages were asked for, and how it
    /// went.
    pub backends: Vec<(Backend, &'static str, bool, Result<(), Reason>)>,
    /// Guard pages without mappings.
    pub guards: Result<(), Reason>,
    /// The kernel's soft-dirty bits; no backend uses them, since they cannot be read and cleared as one step.
    pub soft_dirty: Result<(), Reason>,
    /// The kernel's release.
    pub kernel: String,
    /// `vm.max_map_count`.
    pub map_limit: usize,
    /// `vm.unprivileged_userfaultfd`, where there is one.
    pub unprivileged: Option<String>,
}

/// Try everything. Takes a few milliseconds; the soft-dirty probe clears these bits of the whole process.
///
/// ```
/// let report = vmprim::doctor();
/// assert!(report.backends.iter().any(|(_, _, _, result)| result.is_ok()), "{report}");
/// ```
pub fn doctor() -> Report {
    let installed = crate::dispatch::install().and_then(|()| crate::attach());
    let tried = |(backend, memory, syscalls): (Backend, &'static str, bool)| {
        let needs = if syscalls { Needs::SYSCALLS } else { Needs::NOTHING };
        let result = match &installed {
            Ok(()) => probe::result(backend, memory == MEMFD, needs),
            Err(_) => Err(Reason::Behaviour("the signal handlers were replaced")),
        };
        (backend, memory, syscalls, result)
    };
    const ANON: &str = "anonymous";
    const MEMFD: &str = "memfd";
    let thread = Backend::UffdThread { threads: 1 };
    let all = [
        (Backend::Signal, ANON, false),
        (Backend::Signal, MEMFD, false),
        (Backend::UffdWp, ANON, false),
        (Backend::UffdView, MEMFD, false),
        (thread, ANON, false),
        (thread, MEMFD, false),
        (thread, ANON, true),
        (thread, MEMFD, true),
        (Backend::AsyncDirty, ANON, false),
        (Backend::AsyncDirty, MEMFD, false),
        (Backend::Native, ANON, true),
        (Backend::Native, MEMFD, true),
    ];
    let line = |path| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    Report {
        backends: all.into_iter().map(tried).collect(),
        guards: guard::works(),
        soft_dirty: soft_dirty(),
        kernel: line("/proc/sys/kernel/osrelease").unwrap_or_default(),
        map_limit: sys::map_limit(),
        unprivileged: line("/proc/sys/vm/unprivileged_userfaultfd").ok(),
    }
}

/// Whether soft-dirty bits say what was written: kernels built without them take the request to clear in silence.
fn soft_dirty() -> Result<(), Reason> {
    let refused = |op| {
        move |error: std::io::Error| Reason::Refused {
            op,
            errno: Errno(error.raw_os_error().unwrap_or(0)),
            hint: None,
        }
    };
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let scratch = sys::Mapping::new(2 * sys::BASE, both, libc::MAP_PRIVATE, None)
        .map_err(|errno| Reason::Refused { op: "mmap", errno, hint: None })?;
    let touch = |page: usize| {
        // SAFETY: our scratch mapping, readable and writable.
        unsafe { ((scratch.address + page * sys::BASE) as *mut u8).write_volatile(1) };
    };
    touch(0);
    touch(1);
    std::fs::write("/proc/self/clear_refs", "4").map_err(refused("/proc/self/clear_refs"))?;
    touch(0);
    let mut entries = [0; 16];
    let file = std::fs::File::open("/proc/self/pagemap").map_err(refused("/proc/self/pagemap"))?;
    let at = (scratch.address / sys::BASE * 8) as u64;
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut entries, at)
        .map_err(refused("/proc/self/pagemap"))?;
    let is_dirty = |page: usize| entries[page * 8 + 6] & 0x80 != 0;
    match (is_dirty(0), is_dirty(1)) {
        (true, false) => Ok(()),
        _ => Err(Reason::Behaviour("a written page does not show, or an untouched one does")),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let say = |result: &Result<(), Reason>| match result {
            Ok(()) => "works".to_owned(),
            Err(reason) => reason.to_string(),
        };
        writeln!(
            f,
            "Linux {}; vm.max_map_count {}; vm.unprivileged_userfaultfd {}",
            self.kernel,
            self.map_limit,
            self.unprivileged.as_deref().unwrap_or("-")
        )?;
        for (backend, memory, syscalls, result) in &self.backends {
            let also = if *syscalls { ", system calls wait" } else { "" };
            writeln!(f, "{:44} {}", format!("{} ({memory}{also})", backend.name()), say(result))?;
        }
        writeln!(f, "{:44} {}", "guard pages", say(&self.guards))?;
        writeln!(f, "{:44} {}", "soft-dirty bits", say(&self.soft_dirty))
    }
}
