//! Finding the program, as a shell would, and refusing what Quire cannot run before a machine is started.

use std::{
    ffi::OsStr,
    fs::File,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use object::{Endianness, elf, read::elf::FileHeader, read::elf::ProgramHeader};

use crate::{
    failure::{NOT_FOUND, NOT_RUNNABLE, failure},
    workspace,
};

/// A program on the host and its place in the guest.
#[derive(Clone, Debug)]
pub struct Program {
    /// The file on the host.
    pub host: PathBuf,
    /// Its absolute path in the guest.
    pub guest: Vec<u8>,
    /// Whether it is already there, as part of the packed root.
    pub packed: bool,
}

/// Where a shell in the guest looks; also the guest's PATH.
pub const GUEST_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Find `name`: in the packed root first, then on the host, by path if it has a slash and on PATH otherwise.
pub fn find(name: &OsStr, root: Option<&Path>) -> Result<Program> {
    if let Some(found) = root.and_then(|root| find_in_root(name, root)) {
        return Ok(found);
    }
    let shown = name.to_string_lossy();
    let by_path = name.as_bytes().contains(&b'/');
    let host = if by_path { Some(PathBuf::from(name)) } else { workspace::which(&shown) };
    let Some(host) = host.filter(|path| path.exists()) else {
        let line = if by_path {
            format!("{shown}: no such file: say the path of a static Linux program")
        } else {
            format!(
                "{shown}: no such program on PATH: install it, or say its path with a slash, as in ./{shown}"
            )
        };
        return Err(failure(NOT_FOUND, line));
    };
    if host.is_dir() {
        return Err(failure(
            NOT_RUNNABLE,
            format!("{shown} is a directory: say a program, or pack it with --bind"),
        ));
    }
    let base = host.file_name().unwrap_or(name).as_bytes().to_vec();
    Ok(Program { host, guest: [b"/bin/", base.as_slice()].concat(), packed: false })
}

fn find_in_root(name: &OsStr, root: &Path) -> Option<Program> {
    let guest = if name.as_bytes().contains(&b'/') {
        Path::new("/").join(name)
    } else {
        let mut candidates = GUEST_PATH.split(':').map(|directory| Path::new(directory).join(name));
        candidates.find(|path| inside(root, path).is_file())?
    };
    let host = inside(root, &guest);
    host.is_file().then(|| Program { host, guest: guest.as_os_str().as_bytes().to_vec(), packed: true })
}

/// The host path of the guest path `path`. Absolute symbolic links are those of the root, not of the host.
fn inside(root: &Path, path: &Path) -> PathBuf {
    let mut host = root.join(path.strip_prefix("/").unwrap_or(path));
    // As many links in a row as Linux follows.
    for _ in 0..40 {
        match std::fs::read_link(&host) {
            Ok(target) if target.is_absolute() => {
                host = root.join(target.strip_prefix("/").unwrap_or(&target))
            }
            Ok(target) => host = host.with_file_name("").join(target),
            Err(_) => break,
        }
    }
    host
}

/// Refuse what is not an x86-64 Linux executable, and a script or a dynamic program whose interpreter is not in the guest,
/// as far as `has` knows.
pub fn check(program: &Program, has: impl Fn(&[u8]) -> bool) -> Result<()> {
    let shown = program.host.display();
    if !workspace::is_executable(&program.host) {
        return Err(failure(NOT_RUNNABLE, format!("{shown} is not executable: chmod +x {shown}")));
    }
    let mut file = File::open(&program.host).with_context(|| format!("cannot read {shown}"))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
    if let Some(interpreter) = script_interpreter(&bytes) {
        if has(interpreter) {
            return Ok(());
        }
        let interpreter = String::from_utf8_lossy(interpreter);
        let line =
            format!("{shown} is a script for {interpreter}, which is not in the guest: pack a static one");
        return Err(failure(NOT_RUNNABLE, format!("{line} with --bind HOST:{interpreter}")));
    }
    objection(&bytes, has).map_or(Ok(()), |why| Err(failure(NOT_RUNNABLE, format!("{shown} {why}"))))
}

fn script_interpreter(bytes: &[u8]) -> Option<&[u8]> {
    let line = bytes.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    line.trim_ascii().split(|byte| *byte == b' ' || *byte == b'\t').next()
}

const HOW_TO_BUILD: &str = "build it for x86_64 Linux, static";

/// Why Quire cannot run these bytes, if it cannot.
fn objection(bytes: &[u8], has: impl Fn(&[u8]) -> bool) -> Option<String> {
    let not_elf = || Some(format!("is not an ELF program: {HOW_TO_BUILD}"));
    if !bytes.starts_with(&elf::ELFMAG) {
        return not_elf();
    }
    match bytes.get(4) {
        Some(&class) if class == elf::ELFCLASS32.0 => {
            return Some(format!("is a 32-bit program: {HOW_TO_BUILD} (gcc -m64 -static)"));
        }
        Some(&class) if class == elf::ELFCLASS64.0 => {}
        _ => return not_elf(),
    }
    let parsed = elf::FileHeader64::<Endianness>::parse(bytes).and_then(|h| h.endian().map(|e| (h, e)));
    let Ok((header, endian)) = parsed else { return not_elf() };
    let machine = header.e_machine(endian);
    if machine != elf::EM_X86_64 {
        return Some(format!("is a program for {}: {HOW_TO_BUILD}", machine_name(machine.0)));
    }
    match header.e_type(endian) {
        elf::ET_EXEC | elf::ET_DYN => {}
        elf::ET_REL => return Some("is an object file: link it, static".to_owned()),
        _ => return Some(format!("is an ELF file but not a program: {HOW_TO_BUILD}")),
    }
    let Ok(segments) = header.program_headers(endian, bytes) else {
        return Some("is a damaged ELF file: build it again".to_owned());
    };
    let interpreter = segments.iter().find_map(|segment| segment.interpreter(endian, bytes).ok().flatten());
    if let Some(interpreter) = interpreter.filter(|path| !has(path)) {
        let interpreter = String::from_utf8_lossy(interpreter);
        return Some(format!(
            "is dynamically linked, and {interpreter} is not in the guest: link it with -static (C) or \
             RUSTFLAGS=\"-C target-feature=+crt-static\" (Rust), or pack its libraries with --root"
        ));
    }
    if !segments.iter().any(|segment| segment.p_type(endian) == elf::PT_LOAD) {
        return Some("has no segment to load: build it again".to_owned());
    }
    None
}

fn machine_name(machine: u16) -> String {
    // Numbers of the System V ABI's registry.
    match machine {
        3 => "i386".to_owned(),
        8 => "MIPS".to_owned(),
        20 | 21 => "PowerPC".to_owned(),
        22 => "S/390".to_owned(),
        40 => "32-bit ARM".to_owned(),
        183 => "AArch64".to_owned(),
        243 => "RISC-V".to_owned(),
        258 => "LoongArch".to_owned(),
        other => format!("machine number {other}"),
    }
}

/// The names that a multi-call binary such as busybox goes by, if the program is one.
pub fn applets(program: &Program) -> Vec<String> {
    let real = program.host.canonicalize().unwrap_or_else(|_| program.host.clone());
    if real.file_name() != Some(OsStr::new("busybox")) {
        return Vec::new();
    }
    let mut command = std::process::Command::new(&real);
    command.arg("--list");
    match crate::child::capture(&mut command, &[], std::time::Duration::from_secs(10)) {
        Ok(end) if end.success() => end.text().lines().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure;

    /// A little-endian ELF header with one program header.
    fn elf(class: u8, kind: u16, machine: u16, segment: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1, 1]);
        bytes[16..18].copy_from_slice(&kind.to_le_bytes());
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[20] = 1;
        bytes[32] = 64; // e_phoff
        bytes[52] = 64; // e_ehsize
        bytes[54] = 56; // e_phentsize
        bytes[56] = 1; // e_phnum
        bytes[64..68].copy_from_slice(&segment.to_le_bytes());
        bytes
    }

    const X86_64: u16 = 62;

    #[test]
    fn static_programs_pass() {
        assert_eq!(objection(&elf(2, 2, X86_64, 1), |_| false), None);
        assert_eq!(objection(&elf(2, 3, X86_64, 1), |_| false), None);
    }

    #[test]
    fn other_files_are_refused_with_what_to_do() {
        let why = |bytes: &[u8]| objection(bytes, |_| false).unwrap();
        assert!(why(b"hello").starts_with("is not an ELF program: build it for x86_64"));
        assert!(why(b"").starts_with("is not an ELF program"));
        assert!(why(&elf(2, 2, X86_64, 1)[..40]).starts_with("is not an ELF program"));
        assert!(why(&elf(1, 2, 3, 1)).starts_with("is a 32-bit program"));
        assert!(why(&elf(2, 2, 183, 1)).starts_with("is a program for AArch64"));
        assert!(why(&elf(2, 1, X86_64, 1)).starts_with("is an object file"));
        assert!(why(&elf(2, 2, X86_64, 4)).starts_with("has no segment"));
        assert!(why(&elf(2, 2, X86_64, 1)[..100]).starts_with("is a damaged ELF file"));
    }

    #[test]
    fn a_dynamic_program_needs_its_interpreter_in_the_guest() {
        let mut bytes = elf(2, 3, X86_64, 3);
        bytes[72] = 120; // p_offset
        bytes[96] = 4; // p_filesz
        bytes.extend(b"/ld\0");
        let why = objection(&bytes, |_| false).unwrap();
        assert!(
            why.starts_with("is dynamically linked, and /ld is not in the guest: link it with -static"),
            "{why}"
        );
        assert_eq!(
            objection(&bytes, |path| path == b"/ld"),
            Some("has no segment to load: build it again".to_owned())
        );
    }

    #[test]
    fn a_script_needs_its_interpreter_in_the_guest() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("script");
        std::fs::write(&host, "#! /bin/sh -e\n").unwrap();
        let program = Program { host: host.clone(), guest: b"/bin/script".to_vec(), packed: false };
        let line = format!("{:#}", check(&program, |_| true).unwrap_err());
        assert!(line.contains("not executable: chmod +x"), "{line}");
        std::fs::set_permissions(&host, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(check(&program, |path| path == b"/bin/sh").is_ok());
        let line = format!("{:#}", check(&program, |_| false).unwrap_err());
        assert!(line.contains("is a script for /bin/sh, which is not in the guest"), "{line}");
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let sh = find(OsStr::new("sh"), None).unwrap();
        assert_eq!(sh.guest, b"/bin/sh");
        let missing = find(OsStr::new("no-such-program-here"), None).unwrap_err();
        assert_eq!(failure::status(&missing), NOT_FOUND);
        let missing = find(OsStr::new("./no-such-program-here"), None).unwrap_err();
        assert!(missing.to_string().ends_with("say the path of a static Linux program"));
        assert_eq!(failure::status(&find(OsStr::new("/"), None).unwrap_err()), NOT_RUNNABLE);
    }

    #[test]
    fn the_root_comes_first_and_its_absolute_links_stay_inside() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        std::fs::create_dir_all(root.path().join("bin")).unwrap();
        std::fs::write(root.path().join("usr/bin/tool"), "").unwrap();
        std::os::unix::fs::symlink("/usr/bin/tool", root.path().join("bin/sh")).unwrap();
        let found = find(OsStr::new("sh"), Some(root.path())).unwrap();
        assert_eq!((found.guest.as_slice(), found.packed), (&b"/bin/sh"[..], true));
        assert_eq!(found.host, root.path().join("usr/bin/tool"));
        assert_eq!(find(OsStr::new("/usr/bin/tool"), Some(root.path())).unwrap().guest, b"/usr/bin/tool");
    }
}
