//! Download: every segment proven on arrival, a partial file that the next attempt continues, an atomic end.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use alloy_primitives::B256;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use zerog_chain::flow::SubmissionNode;

use super::{Client, Patience, Peer, Phase, Progress, ProgressCallback, upload::blocking};
use crate::{
    Error, FileShape, FileTree,
    merkle::{SEGMENT_BYTES, SEGMENT_SECTORS, check_segment, root_of_file, root_of_nodes},
    rpc_types::FileInfo,
};

/// How often all nodes are asked for a segment before the download gives up.
const ROUNDS: usize = 3;

/// A fetched file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadOutcome {
    /// The file's root.
    pub root: B256,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes that came from an earlier attempt, or the whole size when the target was already there.
    pub resumed_bytes: u64,
}

impl Client {
    /// Fetches the file with this root to `destination`.
    ///
    /// Data goes to a hidden partial file beside the target, which a later attempt continues; the target appears only
    /// when it is complete, verified and on the disk. A target that already has this root is left as it is.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::NotAvailable`], [`Error::SegmentUnavailable`], [`Error::Call`] for the network;
    /// [`Error::DestinationExists`], [`Error::Busy`], [`Error::File`], [`Error::RootMismatch`] for the disk.
    pub async fn download_file(
        &self,
        root: B256,
        destination: &Path,
        progress: ProgressCallback<'_>,
    ) -> Result<DownloadOutcome, Error> {
        self.download(root, None, destination, progress).await
    }

    /// As [`download_file`](Self::download_file), for a file whose size is known from elsewhere. The root binds the
    /// content up to zeros at the end, so where these matter the size must come with it.
    ///
    /// # Errors
    ///
    /// Also [`Error::SizeMismatch`].
    pub async fn download_file_of_size(
        &self,
        root: B256,
        size: u64,
        destination: &Path,
        progress: ProgressCallback<'_>,
    ) -> Result<DownloadOutcome, Error> {
        self.download(root, Some(size), destination, progress).await
    }

    async fn download(
        &self,
        root: B256,
        size: Option<u64>,
        destination: &Path,
        progress: ProgressCallback<'_>,
    ) -> Result<DownloadOutcome, Error> {
        if let Some(present) = existing(destination, root, size).await? {
            return Ok(DownloadOutcome {
                root,
                size: present,
                resumed_bytes: present,
            });
        }
        let plan = self.plan(root, size).await?;
        let size = plan.shape.size();
        let partial = Partial::open(destination, root, plan.shape)?;
        let resumed_bytes = partial.complete_segments * SEGMENT_BYTES as u64;
        let report = |done_bytes| {
            progress(Progress {
                phase: Phase::Transferring,
                done_bytes,
                total_bytes: size,
            })
        };
        let partial = self.fetch(&plan, partial, &report).await?;
        let partial = match partial.finish(root).await? {
            Ok(()) => {
                return Ok(DownloadOutcome {
                    root,
                    size,
                    resumed_bytes,
                });
            }
            // What an earlier attempt left was not what it had verified. Start afresh once.
            Err((partial, _)) if resumed_bytes > 0 => partial,
            Err((_, found)) => return Err(Error::RootMismatch { root, found }),
        };
        tracing::warn!(%root, "the partial download was damaged; starting afresh");
        let partial = self.fetch(&plan, partial, &report).await?;
        match partial.finish(root).await? {
            Ok(()) => Ok(DownloadOutcome {
                root,
                size,
                resumed_bytes: 0,
            }),
            Err((_, found)) => Err(Error::RootMismatch { root, found }),
        }
    }

    /// Fetches what the partial file lacks, several segments at a time, written in order.
    async fn fetch(
        &self,
        plan: &Plan,
        mut partial: Partial,
        report: &(impl Fn(u64) + Sync),
    ) -> Result<Partial, Error> {
        let missing = partial.complete_segments..plan.shape.segments();
        let mut done = partial.complete_segments * SEGMENT_BYTES as u64;
        report(done);
        let mut segments = stream::iter(missing)
            .map(|index| async move { (index, self.fetch_segment(plan, index).await) })
            .buffered(self.options.parallel_calls.max(1));
        while let Some((index, data)) = segments.next().await {
            let data = data?;
            done += data.len() as u64;
            partial = partial.write(index, data).await?;
            report(done);
        }
        Ok(partial)
    }

    /// Asks one node after the other until a segment arrives that its proof fits; returns the bytes of the file in it.
    async fn fetch_segment(&self, plan: &Plan, index: u64) -> Result<Vec<u8>, Error> {
        let global = plan.first_segment + index;
        let mut failures = Vec::new();
        let mut patience = Patience::new(self.options.poll_interval, self.options.sync_timeout);
        for round in 0..ROUNDS {
            if round > 0 {
                patience.pause().await;
            }
            failures.clear();
            let holders: Vec<usize> = (0..plan.peers.len())
                .filter(|peer| plan.peers[*peer].shard.holds(global))
                .collect();
            for turn in 0..holders.len() {
                // Different segments start at different nodes.
                let number = holders[(turn + index as usize) % holders.len()];
                let peer = &plan.peers[number];
                if plan.distrusted.lock().contains(&number) {
                    failures.push(format!(
                        "{} delivered false data before",
                        peer.node.origin()
                    ));
                    continue;
                }
                match peer.node.download_segment(plan.sequence, index).await {
                    Ok(Some(segment)) => {
                        let checked = segment.index == index && segment.root == plan.root;
                        let proven = check_segment(
                            plan.shape,
                            plan.root,
                            index,
                            &segment.data,
                            &segment.proof,
                        );
                        match proven {
                            Ok(()) if checked => {
                                let mut data = segment.data;
                                data.truncate(plan.shape.file_bytes(index));
                                return Ok(data);
                            }
                            result => {
                                let reason = result
                                    .err()
                                    .map_or("wrong segment".to_owned(), |error| error.to_string());
                                tracing::warn!(node = %peer.node.origin(), index, reason, "a node delivers false data");
                                plan.distrusted.lock().push(number);
                                failures.push(format!("{}: {reason}", peer.node.origin()));
                            }
                        }
                    }
                    Ok(None) => failures.push(format!("{} does not have it", peer.node.origin())),
                    Err(error) => failures.push(error.to_string()),
                }
            }
        }
        Err(Error::SegmentUnavailable {
            root: plan.root,
            index,
            failures,
        })
    }

    /// Finds out where the file is and what shape it has.
    async fn plan(&self, root: B256, size: Option<u64>) -> Result<Plan, Error> {
        let peers = self.locations(root).await?;
        let mut unfinished = false;
        let mut other_size = None;
        let mut failure = None;
        let mut chosen: Option<(FileInfo, FileShape)> = None;
        for peer in &peers {
            match peer.node.file_info(root).await {
                Ok(Some(info)) if info.finalized && !info.pruned => {
                    let Some(shape) = consistent_shape(&info, root) else {
                        failure = Some(Error::NotAvailable { root });
                        continue;
                    };
                    if size.is_some_and(|size| size != info.tx.size) {
                        other_size = Some(info.tx.size);
                        continue;
                    }
                    chosen = Some((info, shape));
                    break;
                }
                Ok(Some(_)) => unfinished = true,
                Ok(None) => {}
                Err(error) => failure = Some(error.into()),
            }
        }
        let (info, shape) = match (chosen, other_size, size) {
            (Some(chosen), ..) => chosen,
            (None, Some(found), Some(expected)) => {
                return Err(Error::SizeMismatch {
                    root,
                    found,
                    expected,
                });
            }
            _ if unfinished => return Err(Error::NotAvailable { root }),
            _ => return Err(failure.unwrap_or(Error::NotFound { root })),
        };
        let first_segment = info.tx.start_entry_index / SEGMENT_SECTORS;
        Ok(Plan {
            root,
            shape,
            sequence: info.tx.seq,
            first_segment,
            peers,
            distrusted: Mutex::default(),
        })
    }
}

struct Plan {
    root: B256,
    shape: FileShape,
    sequence: u64,
    first_segment: u64,
    peers: Vec<Peer>,
    /// Nodes that delivered something that its proof does not fit; they are not asked again.
    distrusted: Mutex<Vec<usize>>,
}

/// The shape that a node claims, if its submission nodes have the root and cover exactly that many padded sectors.
fn consistent_shape(info: &FileInfo, root: B256) -> Option<FileShape> {
    let shape = FileShape::new(info.tx.size).ok()?;
    let nodes: Vec<SubmissionNode> = info
        .tx
        .merkle_nodes
        .iter()
        .map(|(depth, root)| {
            let height = u8::try_from(depth.checked_sub(1)?)
                .ok()
                .filter(|height| *height < 64)?;
            Some(SubmissionNode {
                root: *root,
                height,
            })
        })
        .collect::<Option<_>>()?;
    let sectors = nodes
        .iter()
        .try_fold(0_u64, |sum, node| sum.checked_add(1 << node.height))?;
    (!nodes.is_empty() && root_of_nodes(&nodes) == root && sectors == shape.padded_sectors())
        .then_some(shape)
}

/// The size of the target if it already has the root.
async fn existing(destination: &Path, root: B256, size: Option<u64>) -> Result<Option<u64>, Error> {
    let path = destination.to_owned();
    blocking(move || {
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::File { path, source }),
        };
        let same = metadata.is_file()
            && metadata.len() > 0
            && size.is_none_or(|size| size == metadata.len())
            && root_of_file(&path)? == root;
        if same {
            Ok(Some(metadata.len()))
        } else {
            Err(Error::DestinationExists { path })
        }
    })
    .await
}

/// The file under construction. It is locked while it is open.
struct Partial {
    file: Arc<File>,
    path: PathBuf,
    destination: PathBuf,
    shape: FileShape,
    /// Segments at its beginning that are there.
    complete_segments: u64,
}

impl Partial {
    fn open(destination: &Path, root: B256, shape: FileShape) -> Result<Self, Error> {
        let name = destination
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let directory = directory_of(destination);
        fs::create_dir_all(directory).map_err(|source| Error::File {
            path: directory.to_owned(),
            source,
        })?;
        // Root and size are part of the name, so that a partial file can only ever be continued with the same file.
        let path = directory.join(format!(
            ".{name}.{:.16}-{}.part",
            alloy_primitives::hex::encode(root),
            shape.size()
        ));
        let failed = |source| Error::File {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path }),
            Err(TryLockError::Error(source)) => return Err(Error::File { path, source }),
        }
        let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let complete_segments = if length >= shape.size() {
            // Only the last check was missing.
            file.set_len(shape.size()).map_err(failed)?;
            shape.segments()
        } else {
            length / SEGMENT_BYTES as u64
        };
        Ok(Self {
            file: Arc::new(file),
            path,
            destination: destination.to_owned(),
            shape,
            complete_segments,
        })
    }

    async fn write(mut self, index: u64, data: Vec<u8>) -> Result<Self, Error> {
        debug_assert_eq!(
            index, self.complete_segments,
            "segments are written in order"
        );
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        blocking(move || {
            file.write_all_at(&data, index * SEGMENT_BYTES as u64)
                .map_err(|source| Error::File { path, source })
        })
        .await?;
        self.complete_segments = index + 1;
        Ok(self)
    }

    /// Checks the whole file from the disk and puts it in place; or gives the emptied file back, with the root that it
    /// had.
    async fn finish(self, root: B256) -> Result<Result<(), (Self, B256)>, Error> {
        blocking(move || {
            let failed = |source| Error::File {
                path: self.path.clone(),
                source,
            };
            let mut reader = &*self.file;
            reader.rewind().map_err(failed)?;
            let found = FileTree::read(self.shape, reader).map_err(failed)?.root();
            if found != root {
                self.file.set_len(0).map_err(failed)?;
                return Ok(Err((
                    Self {
                        complete_segments: 0,
                        ..self
                    },
                    found,
                )));
            }
            self.file.sync_all().map_err(failed)?;
            // Linking instead of renaming would not replace a file that appeared meanwhile, but not every file system
            // can link; the target was absent when the download began.
            fs::rename(&self.path, &self.destination).map_err(failed)?;
            let directory = directory_of(&self.destination);
            File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(|source| Error::File {
                    path: directory.to_owned(),
                    source,
                })?;
            Ok(Ok(()))
        })
        .await
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}
