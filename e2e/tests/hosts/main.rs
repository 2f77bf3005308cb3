//! A server and two workers on three hosts, driven by stock kubectl.

mod bad_input;
mod encryption;
mod faults;
mod kubectl;
mod snapshot;
mod web_app;
