//! Serves the etcd API of a store of its own: `etcd <directory> <address>`, until it is interrupted.

use std::{process::ExitCode, sync::Arc};

use store::{Config, Store};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, dir, address] = &arguments[..] else {
        eprintln!("usage: etcd <directory> <address>");
        return ExitCode::FAILURE;
    };
    match run(dir, address).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(dir: &str, address: &str) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open(Config::new(dir)).await?;
    let listener = TcpListener::bind(address).await?;
    store::etcd::serve((store.clone(), Arc::new(store::etcd::Alone), None), listener, || None, async {
        drop(tokio::signal::ctrl_c().await)
    })
    .await;
    Ok(store.shutdown().await?)
}
