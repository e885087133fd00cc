//! The tree's files as one stream of messages to a member.

use std::io;

use anyhow::Context;
use oast_proto::v1;
use oast_proto::v1::upload_tree_request::Message;
use tokio::fs;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::tree::{File, Tree};
use crate::client::{Client, may_be_tried_again};
use crate::output::{bytes, count, note};

/// Bytes of a file in one message, well below what a member accepts.
const CHUNK: usize = 256 << 10;
/// Messages on their way.
const QUEUE: usize = 8;
/// How many members are tried.
const TRIES: usize = 5;

/// Uploads. The farm keeps files that it has already only once.
pub async fn upload(client: &Client, tree: &Tree) -> anyhow::Result<v1::UploadTreeResponse> {
    let size = tree.files.iter().map(|file| file.size).sum();
    note(format!(
        "Uploading {} ({})",
        count(tree.files.len(), "file"),
        bytes(size)
    ));
    let mut tries = 0;
    loop {
        let (sender, messages) = mpsc::channel(QUEUE);
        let mut runs = client.member().runs();
        let (sent, answer) = tokio::join!(
            send(tree, sender),
            runs.upload_tree(ReceiverStream::new(messages))
        );
        // A file that cannot be read is why the farm found the upload cut short.
        sent?;
        tries += 1;
        match answer {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) if may_be_tried_again(&status) && tries < TRIES => client.turn(),
            Err(status) => return Err(status.into()),
        }
    }
}

async fn send(tree: &Tree, sender: mpsc::Sender<v1::UploadTreeRequest>) -> anyhow::Result<()> {
    for file in &tree.files {
        let header = v1::UploadFile {
            path: file.path.clone(),
            mode: file.mode,
            size: file.size,
            symlink: file.link.clone().unwrap_or_default(),
        };
        if !give(&sender, Message::File(header)).await {
            return Ok(());
        }
        if file.link.is_none() && !send_bytes(tree, file, &sender).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// False when the member does not listen any more: it says itself why.
async fn send_bytes(
    tree: &Tree,
    file: &File,
    sender: &mpsc::Sender<v1::UploadTreeRequest>,
) -> anyhow::Result<bool> {
    let mut left = file.size;
    if left == 0 {
        return Ok(true);
    }
    let path = tree.root.join(&file.path);
    let mut open = fs::File::open(&path)
        .await
        .with_context(|| format!("read {}", path.display()))?;
    while left > 0 {
        let mut chunk = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        match open.read_exact(&mut chunk).await {
            Ok(_) => {}
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => {
                anyhow::bail!(
                    "{} became shorter while it was read: start again",
                    path.display()
                )
            }
            Err(err) => return Err(err).with_context(|| format!("read {}", path.display())),
        }
        left -= chunk.len() as u64;
        if !give(sender, Message::Chunk(chunk.into())).await {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn give(sender: &mpsc::Sender<v1::UploadTreeRequest>, message: Message) -> bool {
    sender
        .send(v1::UploadTreeRequest {
            message: Some(message),
        })
        .await
        .is_ok()
}
