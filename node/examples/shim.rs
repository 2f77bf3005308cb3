//! The shim as a program of its own, for tests: `shim shim --dir DIR --cgroup PATH`.

fn main() -> std::process::ExitCode {
    node::shim::main(std::env::args_os().skip(2))
}
