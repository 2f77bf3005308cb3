//! Commands that only print.

use std::io::Write;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::flags::{Cli, DataDir};

/// The join token as the server's data directory holds it.
pub fn token(flags: &DataDir) -> Result<()> {
    let path = flags.data_dir.join("token");
    let token = std::fs::read_to_string(&path).with_context(|| {
        format!("no token in {}: run this on a server, with its --data-dir", flags.data_dir.display())
    })?;
    println!("{}", token.trim());
    Ok(())
}

pub fn version() -> Result<()> {
    println!("minik8s {} (Kubernetes {})", env!("CARGO_PKG_VERSION"), apiserver::VERSION);
    Ok(())
}

pub fn completion(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "minik8s", &mut script);
    std::io::stdout().write_all(&script).context("write the script")
}
