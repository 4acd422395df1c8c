//! How many bytes may be on their way at once. Who has more to send waits
//! (backpressure); where it is refused instead, there is a [`Budget`](super::Budget).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many bytes may be on their way at once. Who asks for room waits for it,
/// in the order of asking.
#[derive(Debug)]
pub struct Window {
    bytes_max: usize,
    room: Arc<Semaphore>,
}

impl Window {
    /// Nothing is on its way yet.
    pub fn new(bytes_max: usize) -> Self {
        // One question for room is a number of 32 bits.
        let bytes_max = bytes_max.min(u32::MAX as usize);
        Window {
            bytes_max,
            room: Arc::new(Semaphore::new(bytes_max)),
        }
    }

    /// Waits until there is room. What is larger than the whole window waits
    /// until nothing else is on its way. The room is given back with what is
    /// returned.
    pub async fn enter(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = bytes.min(self.bytes_max);
        let room = self.room.clone().acquire_many_owned(bytes as u32);
        // It is never closed.
        room.await.ok()
    }

    /// The bytes that are on their way.
    pub fn bytes(&self) -> usize {
        self.bytes_max - self.room.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_is_on_its_way_is_bounded_and_first_come_is_first_served() {
        let window = Window::new(10);
        let first = window.enter(6).await;
        assert_eq!(window.bytes(), 6);
        let mut large = std::pin::pin!(window.enter(25));
        assert!((&mut large).now_or_never().is_none());
        let mut small = std::pin::pin!(window.enter(1));
        assert!((&mut small).now_or_never().is_none(), "it is behind");
        drop(first);
        let large = (&mut large).now_or_never().expect("there is room");
        assert_eq!(window.bytes(), 10);
        assert!((&mut small).now_or_never().is_none());
        drop(large);
        assert!((&mut small).now_or_never().flatten().is_some());
        assert_eq!(window.bytes(), 0, "it was given back at once");
    }

    #[tokio::test]
    async fn who_goes_away_takes_no_room() {
        let window = Window::new(10);
        let all = window.enter(10).await;
        {
            let mut waits = std::pin::pin!(window.enter(4));
            assert!((&mut waits).now_or_never().is_none());
        }
        drop(all);
        assert!(window.enter(10).now_or_never().flatten().is_some());
    }
}
