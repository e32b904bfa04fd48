//! How much one client may ask: a bucket of tokens per address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Most addresses that have a bucket of their own. Those that come when all are in use share one.
const MAX_BUCKETS: usize = 1 << 16;

/// Requests per second and client.
pub struct RateLimit {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl RateLimit {
    /// `burst` requests at once, then `per_second`.
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self {
            per_second: f64::from(per_second),
            burst: f64::from(burst),
            buckets: Mutex::new(HashMap::new()),
        }
    }

    /// Whether a client may ask at `now`.
    pub fn allows(&self, client: IpAddr, now: Instant) -> bool {
        // A bucket is assigned whole: nothing is left half done by a panic.
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut client = client_of(client);
        if buckets.len() >= MAX_BUCKETS && !buckets.contains_key(&client) {
            buckets.retain(|_, bucket| self.level(bucket, now) < self.burst);
            if buckets.len() >= MAX_BUCKETS {
                client = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        let bucket = buckets.entry(client).or_insert(Bucket {
            tokens: self.burst,
            filled: now,
        });
        bucket.tokens = self.level(bucket, now);
        bucket.filled = now;
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }

    fn level(&self, bucket: &Bucket, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(bucket.filled).as_secs_f64();
        (bucket.tokens + seconds * self.per_second).min(self.burst)
    }
}

/// What counts as one client: an address of IPv4, a /64 of IPv6.
pub fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_client_gets_its_burst_then_its_rate_and_others_are_not_touched() {
        let (limit, now) = (RateLimit::new(2, 3), Instant::now());
        let (a, b) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        assert_eq!([(); 4].map(|()| limit.allows(a, now)), [true, true, true, false]);
        assert!(limit.allows(b, now));
        let later = now + Duration::from_secs(1);
        assert_eq!([(); 3].map(|()| limit.allows(a, later)), [true, true, false]);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let client = |text: &str| client_of(text.parse().unwrap());
        assert_eq!(client("2001:db8:1:2::1"), client("2001:db8:1:2:ffff::"));
        assert_ne!(client("2001:db8:1:2::1"), client("2001:db8:1:3::1"));
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
    }

    #[test]
    fn many_addresses_do_not_take_memory_without_end() {
        let (limit, now) = (RateLimit::new(1, 1), Instant::now());
        for i in 0..(MAX_BUCKETS as u32 + 10) {
            limit.allows(IpAddr::V4(i.into()), now);
        }
        assert!(limit.buckets.lock().unwrap().len() <= MAX_BUCKETS + 1);
        assert!(
            !limit.allows("203.0.113.1".parse().unwrap(), now),
            "the shared bucket is empty"
        );
        assert!(limit.allows("203.0.113.1".parse().unwrap(), now + Duration::from_secs(2)));
    }
}
