//! What every actor shares: admission, supervision, and threads that give way.

pub mod admission;
pub mod supervisor;

use std::io;

use actix::{Arbiter, ArbiterHandle};

/// How much a thread in the background gives way: at 15 it has about a thirtieth of what a busy thread beside it has. There
/// are half a dozen of them, and the servers they feed take their share too. SCHED_IDLE would cost requests a tenth less, but
/// leaves a busy machine's readers next to nothing, and they would fall behind for as long as it is busy.
const NICE: i32 = 15;

/// An arbiter for readers that may lag: its thread, and those it blocks, give way to those that answer requests. The
/// journal holds what they have not come to yet.
///
/// # Errors
/// When no thread can be started.
pub fn background() -> io::Result<ArbiterHandle> {
    let runtime = || {
        give_way();
        tokio::runtime::Builder::new_current_thread().enable_all().on_thread_start(give_way).build()
    };
    Ok(Arbiter::try_with_tokio_rt(runtime)?.handle())
}

fn give_way() {
    // Of the calling thread, on Linux. Where it is not allowed, the thread is one like the others.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        log::debug!("a background thread keeps its priority: {error}");
    }
}
