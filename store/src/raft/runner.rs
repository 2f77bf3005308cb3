//! The driver's thread: gives it the machine's clock, and sees to the end.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    Input, Queue,
    driver::{Driver, Now, Turn},
};
use crate::{Error, store::unix_millis};

pub struct Runner {
    pub driver: Driver,
    pub inbox: Arc<Queue<Input>>,
    /// Those that the driver hands its work to; they end after it.
    pub threads: Vec<JoinHandle<()>>,
    pub lock: Option<fs::File>,
}

impl Runner {
    /// Runs until it is stopped or something breaks that must not: then the store ends, with everyone told why.
    pub fn run(mut self) {
        let worked = catch_unwind(AssertUnwindSafe(|| self.work()));
        let error = match worked {
            Ok(Ok(())) => Error::Closed,
            Ok(Err(error @ Error::Fatal { .. })) => error,
            Ok(Err(error)) => Error::Fatal { reason: error.to_string() },
            Err(panic) => Error::Fatal { reason: format!("an invariant broke: {}", message_of(&*panic)) },
        };
        if let Error::Fatal { reason } = &error {
            tracing::error!(%reason, "the store stops");
        }
        self.driver.end(&error);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        drop(self.lock.take());
        // Whoever sent something while the doors were closing is told too.
        self.inbox.close().into_iter().for_each(|input| input.refuse(&error));
        if let Some(done) = self.driver.stopper() {
            let _ = done.send(());
        }
    }

    fn work(&mut self) -> Result<(), Error> {
        #[expect(clippy::disallowed_methods, reason = "the runner is the shell")]
        let started = Instant::now();
        self.driver.begin()?;
        let mut wait = Duration::ZERO;
        loop {
            let inputs = self.inbox.take(wait);
            let now = Now { since_start: started.elapsed(), unix_ms: unix_millis() };
            match self.driver.turn(now, inputs)? {
                Turn::Wait(longest) => wait = longest,
                Turn::Stopped => return Ok(()),
            }
        }
    }
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".to_owned())
}
