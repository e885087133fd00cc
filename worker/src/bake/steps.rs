//! What steps do. Each makes an upper folder over the layers below; the engine makes it a layer.

pub mod account;
pub mod ansible;
pub mod cache;
pub mod copy;
pub mod download;
pub mod packages;
pub mod run;
pub mod systemd;
pub mod view;
