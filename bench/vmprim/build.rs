//! Compiles the C twin, if there is a C compiler; without one its columns stay empty.

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=c/twin.c");
    println!("cargo::rerun-if-env-changed=CC");
    let twin = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("twin");
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let built = Command::new(compiler).args(["-O2", "-Wall", "-o"]).arg(&twin).arg("c/twin.c").status();
    let path = if built.is_ok_and(|status| status.success()) { twin } else { PathBuf::new() };
    println!("cargo::rustc-env=QUIRE_TWIN={}", path.display());
}
