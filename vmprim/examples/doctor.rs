//! Say which backends work here, and why the others do not: `cargo run -p quire-vmprim --example doctor`.

fn main() {
    print!("{}", vmprim::doctor());
}
