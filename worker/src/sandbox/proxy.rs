//! The way out of a sandbox with `network: proxy`.

/// Where the proxy listens inside the sandbox.
pub const PROXY_PORT: u16 = 3128;
