//! Runs `nft`: one process for one transaction, its error text kept, which the `nftables` crate's own runner loses.
//!
//! The process ends about 10 ms after its transaction is in force: closing the socket waits for the kernel to free
//! what was deleted. So callers gather what changes meanwhile, and never wait for a batch to be worth sending.

use std::{process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use nftables::schema::Nftables;

use crate::{
    batch::{Batch, TABLE},
    error::{Error, Result},
    json, text,
};

/// Far more than the largest table takes (100,000 elements: 1 s); an nft that hangs is ended.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// What of nft's complaint is worth a line in a log; it repeats the whole command it stumbled on.
const ERROR_KEPT: usize = 400;

/// Carries a batch out, all of it or nothing: as typed values, or as text if it declares what JSON cannot.
pub async fn apply(batch: &Batch) -> Result<()> {
    match json::encode(batch) {
        Some(transaction) => apply_typed(&transaction).await,
        None => apply_text(&text::encode(batch)).await,
    }
}

/// Carries a transaction out, all of it or nothing.
pub async fn apply_typed(transaction: &Nftables<'_>) -> Result<()> {
    let bytes = serde_json::to_vec(transaction).map_err(|e| Error::NftEncode { source: e.into() })?;
    run(&["-j", "-f", "-"], &bytes).await.map(drop)
}

/// Carries a script out, all of it or nothing.
pub async fn apply_text(script: &str) -> Result<()> {
    run(&["-f", "-"], script.as_bytes()).await.map(drop)
}

/// Whether our table is there. It costs one small process, and reads no rules.
pub async fn has_table() -> Result<bool> {
    let tables = run(&["list", "tables"], b"").await?;
    Ok(String::from_utf8_lossy(&tables).lines().any(|line| line.strip_prefix("table ip ") == Some(TABLE)))
}

async fn run(arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let run = async {
        let mut nft = Command::new("nft")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(Error::nft_start)?;
        let stdin = nft.stdin.take();
        let write = async move {
            if let Some(mut stdin) = stdin {
                // If nft stops reading, its exit code and error text say why.
                let _ = stdin.write_all(input).await;
            }
        };
        let (output, ()) = tokio::join!(nft.wait_with_output(), write);
        output.map_err(Error::nft_start)
    };
    let output = timeout(TIME_LIMIT, run).await.map_err(|_| Error::NftTimeout { seconds: TIME_LIMIT.as_secs() })??;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::Nft { message: first_lines(&String::from_utf8_lossy(&output.stderr)) })
}

fn first_lines(text: &str) -> String {
    let short: String = text.trim().chars().take(ERROR_KEPT).collect();
    short.lines().map(str::trim).collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_complaint_is_cut_and_put_in_one_line() {
        assert_eq!(first_lines("  a: Error: b\n   ^^^ \n"), "a: Error: b | ^^^");
        assert_eq!(first_lines(&"x".repeat(10_000)).len(), ERROR_KEPT);
    }
}
