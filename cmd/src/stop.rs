//! Signals: the first asks for an orderly end, the second does not wait for it.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Returns at the first SIGTERM or SIGINT. From then on a further one ends the process at once.
pub async fn asked() -> Result<()> {
    let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(1);
    });
    Ok(())
}
