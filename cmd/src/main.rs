//! `minik8s`: a whole Kubernetes-compatible cluster in one binary.
//!
//! - [`flags`] for the command line, the environment and the config file
//! - [`server`], [`agent`], [`dev`]: the three ways to run
//! - [`join`]: how a server becomes one of several; [`servers`]: which there are
//! - [`image`], [`info`]: small tools; [`snapshot`]: backups, by hand and on schedule, under a passphrase by [`seal`]; [`encryption`]: keys;
//!   [`ask`]: of a running server
//! - [`stop`] for signals
//!
//! Exit codes: 0 stopped, 1 failed (one line on stderr says what and what to do), 2 wrong usage.

mod flags;

mod agent;
mod dev;
mod join;
mod server;

mod ask;
mod encryption;
mod image;
mod info;
mod seal;
mod servers;
mod snapshot;

mod stop;

use std::{io::IsTerminal, process::ExitCode};

use flags::Command;
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

fn main() -> ExitCode {
    // The shim must stay one small thread: it goes its own way before any runtime or logger exists.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "shim") {
        return node::shim::main(words);
    }
    let command = match flags::parse() {
        Ok(command) => command,
        Err(error) => error.exit(),
    };
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("minik8s: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Server(flags) => with_runtime(server::run(flags)),
        Command::Agent(flags) => with_runtime(agent::run(flags)),
        Command::Dev(flags) => with_runtime(dev::run(flags)),
        Command::Status { server, json: true } => with_runtime(servers::status_as_json(server)),
        Command::Status { server, json: false } => with_runtime(servers::status(server)),
        Command::Remove { server, which } => with_runtime(servers::remove(server, which)),
        Command::Token(flags) => info::token(&flags),
        Command::Image(flags) => with_runtime(image::run(flags)),
        Command::Snapshot { action } => with_runtime(snapshot::run(action)),
        Command::Encryption { action } => with_runtime(encryption::run(action)),
        Command::Version => info::version(),
        Command::Completion { shell } => info::completion(shell),
    }
}

fn with_runtime(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    start_logging();
    // Every TLS user in the process takes its cryptography from here; a second provider would make rustls panic.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider was installed first");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// `MINIK8S_LOG` takes a level, or levels by part: `info`, or `warn,scheduler=debug`.
fn start_logging() {
    let wanted = std::env::var("MINIK8S_LOG").unwrap_or_default();
    let (targets, error) = match wanted.parse::<Targets>() {
        Ok(targets) if !wanted.is_empty() => (targets, None),
        Ok(_) => (Targets::new().with_default(LevelFilter::WARN), None),
        Err(error) => (Targets::new().with_default(LevelFilter::WARN), Some(error)),
    };
    let lines =
        tracing_subscriber::fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines.with_filter(targets)).init();
    if let Some(error) = error {
        tracing::warn!("MINIK8S_LOG={wanted:?} is no list of levels such as warn,scheduler=debug: {error}");
    }
}

/// The error and its causes, on one line.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().replace('\n', " ");
        // A cause that its effect already quotes says nothing new.
        if !line.contains(text.as_str()) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(text.trim());
        }
    }
    line
}
