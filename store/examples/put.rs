//! How many durable puts a second: one client after another, and 64 at once. `cargo run --example put [DIR]`

#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use store::{Config, Op, Store, Txn};

const VALUE: usize = 1024;
const SEQUENTIAL: usize = 2_000;
const CLIENTS: usize = 64;
const EACH: usize = 500;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "put-example-data".to_owned());
    let begun = Instant::now();
    let store = Store::open(Config::new(&dir)).await?;
    println!("open: {:?}, {} keys, revision {}", begun.elapsed(), store.status().keys, store.status().revision);

    let mut times = Vec::with_capacity(SEQUENTIAL);
    for n in 0..SEQUENTIAL {
        let begun = Instant::now();
        store.txn(put(&format!("sequential/{n}"))).await?;
        times.push(begun.elapsed());
    }
    report("1 client", times.iter().sum(), times);

    let begun = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut times = Vec::with_capacity(EACH);
                for n in 0..EACH {
                    let begun = Instant::now();
                    store.txn(put(&format!("client/{client}/{n}"))).await?;
                    times.push(begun.elapsed());
                }
                Ok::<_, store::Error>(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await??);
    }
    report(&format!("{CLIENTS} clients"), begun.elapsed(), times);
    println!("{:?}", store.status());
    print_memory()?;
    store.shutdown().await?;
    Ok(())
}

fn put(key: &str) -> Txn {
    let op = Op::Put { key: Bytes::from(key.to_owned()), value: Bytes::from(vec![b'v'; VALUE]), lease: None };
    Txn { then: vec![op], ..Txn::default() }
}

fn report(what: &str, total: Duration, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    let rate = times.len() as f64 / total.as_secs_f64();
    println!("{what}: {rate:.0} puts/s, p50 {:?}, p99 {:?}", at(50), at(99));
}

fn print_memory() -> std::io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    status
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
        .for_each(|line| println!("{line}"));
    Ok(())
}
