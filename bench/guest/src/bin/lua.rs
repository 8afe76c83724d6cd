//! `lua -e SCRIPT`: runs a script with Lua's standard library. What the tests run is the interpreter, which is C: its
//! garbage collector and allocator, long jumps, and the C library's files, time and locale.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [option, script] = words.as_slice() else { return usage() };
    if option != "-e" {
        return usage();
    }
    match mlua::Lua::new().load(script).set_name("=script").exec() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lua: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("lua: say lua -e SCRIPT");
    ExitCode::from(2)
}
