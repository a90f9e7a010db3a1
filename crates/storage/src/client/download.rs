//! Download: every segment proven on arrival, a partial file that the next attempt continues, an atomic end.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use alloy_primitives::{B256, keccak256};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use zerog_chain::flow::SubmissionNode;

use super::{Client, Patience, Peer, Phase, Progress, ProgressCallback, upload::blocking};
use crate::{
    CallError, Content, Decryption, Error, FileShape, FileTree,
    content::{sync_directory, write_all_at},
    encryption::decrypt_open_file,
    merkle::{
        InvalidSegment, SEGMENT_BYTES, SEGMENT_SECTORS, check_segment, root_of_file, root_of_nodes,
    },
    rpc::AnswerText,
    rpc_types::FileInfo,
};

/// How often all nodes are asked for a segment before the download gives up.
const ROUNDS: usize = 3;

/// A download call moves one segment, an upload call several; so more downloads go side by side.
const DOWNLOADS_PER_UPLOAD: usize = 2;

/// How a file is fetched.
#[derive(Clone, Debug, Default)]
pub struct DownloadOptions {
    /// Bytes of the stored file, where they are known from elsewhere. The root binds the content up to zeros at the end,
    /// so where these matter the size must come with it.
    pub size: Option<u64>,
    /// Decrypt what was fetched.
    pub decryption: Option<Decryption>,
    /// Replace a file of other content at the target, once the fetched one is verified and on the disk. Without it such
    /// a target is an error.
    pub replace: bool,
}

/// A fetched file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadOutcome {
    /// Bytes of the stored file.
    pub size: u64,
    /// Bytes that came from an earlier attempt, or the whole size when the target was already there.
    pub resumed_bytes: u64,
}

impl Client {
    /// Fetches the file with this root to `destination`.
    ///
    /// Data goes to a hidden partial file beside the target, which a later attempt continues; the target appears only
    /// when it is complete, verified and on the disk. A target that already has this root is left as it is; one of other
    /// content is an error, or replaced at the very end with [`DownloadOptions::replace`].
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
        self.download(&[root], &DownloadOptions::default(), destination, progress)
            .await
    }

    /// As [`download_file`](Self::download_file), with options, and for a file that was cut into several objects, whose
    /// roots come in the order of the file.
    ///
    /// # Errors
    ///
    /// Also [`Error::SizeMismatch`] and [`Error::NotEncrypted`]. [`Error::NotFound`] without a root.
    pub async fn download(
        &self,
        roots: &[B256],
        options: &DownloadOptions,
        destination: &Path,
        progress: ProgressCallback<'_>,
    ) -> Result<DownloadOutcome, Error> {
        let is_plain = options.decryption.is_none();
        // One file that is there already is recognised without asking anybody.
        if let ([root], true) = (roots, is_plain)
            && let Some(size) = existing(destination, *root, options).await?
        {
            return Ok(DownloadOutcome {
                size,
                resumed_bytes: size,
            });
        }
        let mut plans = Vec::with_capacity(roots.len());
        for root in roots {
            let size = options.size.filter(|_| roots.len() == 1);
            plans.push(self.plan(*root, size).await?);
        }
        let plans = Plans::new(plans)?;
        if let Some(expected) = options.size.filter(|size| *size != plans.length) {
            return Err(Error::SizeMismatch {
                root: plans.name(),
                found: plans.length,
                expected,
            });
        }
        if destination.exists() {
            let same = is_plain && plans.has_content_of(destination).await?;
            if same {
                return Ok(DownloadOutcome {
                    size: plans.length,
                    resumed_bytes: plans.length,
                });
            }
            if !(options.replace && destination.is_file()) {
                return Err(Error::DestinationExists {
                    path: destination.to_owned(),
                });
            }
        }
        let partial = Partial::open(destination, &plans)?;
        let resumed_bytes = partial.complete_bytes;
        let report = |done_bytes| {
            progress(Progress {
                phase: Phase::Transferring,
                done_bytes,
                total_bytes: plans.length,
            })
        };
        let decryption = options.decryption.as_ref();
        let outcome = |resumed_bytes| DownloadOutcome {
            size: plans.length,
            resumed_bytes,
        };
        let partial = self.fetch(&plans, partial, &report).await?;
        let partial = match partial.finish(&plans, decryption).await? {
            Ok(()) => return Ok(outcome(resumed_bytes)),
            // What an earlier attempt left was not what it had verified. Start afresh once.
            Err((partial, _)) if resumed_bytes > 0 => partial,
            Err((_, error)) => return Err(error),
        };
        tracing::warn!(root = %plans.name(), "the partial download was damaged; starting afresh");
        let partial = self.fetch(&plans, partial, &report).await?;
        match partial.finish(&plans, decryption).await? {
            Ok(()) => Ok(outcome(0)),
            Err((_, error)) => Err(error),
        }
    }

    /// Fetches what the partial file lacks, several segments at a time, written in order.
    async fn fetch(
        &self,
        plans: &Plans,
        mut partial: Partial,
        report: &(impl Fn(u64) + Sync),
    ) -> Result<Partial, Error> {
        report(partial.complete_bytes);
        let start = partial.complete_bytes;
        let missing = plans
            .units()
            .skip_while(|unit| unit.offset + unit.bytes as u64 <= start);
        let mut segments = stream::iter(missing)
            .map(|unit| async move {
                let data = self
                    .fetch_segment(&plans.parts[unit.part], unit.index)
                    .await;
                (unit, data)
            })
            .buffered(self.options.parallel_calls.max(1) * DOWNLOADS_PER_UPLOAD);
        while let Some((unit, data)) = segments.next().await {
            partial = partial.write(&unit, data?).await?;
            report(partial.complete_bytes);
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
                let text = match peer.node.segment_text(plan.sequence, index).await {
                    Ok(text) => text,
                    Err(error) => {
                        failures.push(error.to_string());
                        continue;
                    }
                };
                let (node, shape, root) = (peer.node.clone(), plan.shape, plan.root);
                // Decoding and hashing are work for another thread than the one that talks.
                let arrival =
                    blocking(move || Ok(Arrival::of(&node, &text, shape, root, index))).await?;
                match arrival {
                    Arrival::Proven(data) => return Ok(data),
                    Arrival::False(reason) => {
                        tracing::warn!(node = %peer.node.origin(), index, reason, "a node delivers false data");
                        plan.distrusted.lock().push(number);
                        failures.push(format!("{}: {reason}", peer.node.origin()));
                    }
                    Arrival::Absent => {
                        failures.push(format!("{} does not have it", peer.node.origin()))
                    }
                    Arrival::Failed(error) => failures.push(error.to_string()),
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

/// What a node sent for a segment.
enum Arrival {
    Proven(Vec<u8>),
    False(String),
    Absent,
    Failed(CallError),
}

impl Arrival {
    fn of(
        node: &crate::NodeClient,
        text: &AnswerText,
        shape: FileShape,
        root: B256,
        index: u64,
    ) -> Self {
        let segment = match node.parse_segment(text) {
            Ok(Some(segment)) => segment,
            Ok(None) => return Self::Absent,
            Err(error) => return Self::Failed(error),
        };
        if segment.index != index || segment.root != root {
            return Self::False("wrong segment".to_owned());
        }
        let proven: Result<(), InvalidSegment> =
            check_segment(shape, root, index, &segment.data, &segment.proof);
        match proven {
            Ok(()) => {
                let mut data = segment.data;
                data.truncate(shape.file_bytes(index));
                Self::Proven(data)
            }
            Err(error) => Self::False(error.to_string()),
        }
    }
}

/// One object after the other, as they make up the file.
struct Plans {
    parts: Vec<Plan>,
    length: u64,
}

/// A segment to be fetched.
#[derive(Clone, Copy)]
struct Unit {
    part: usize,
    index: u64,
    /// Where it begins in the file.
    offset: u64,
    bytes: usize,
}

impl Plans {
    fn new(parts: Vec<Plan>) -> Result<Self, Error> {
        if parts.is_empty() {
            return Err(Error::NotFound { root: B256::ZERO });
        }
        let length = parts.iter().map(|part| part.shape.size()).sum();
        Ok(Self { parts, length })
    }

    /// What names the file: its root, or the hash of the roots of its parts.
    fn name(&self) -> B256 {
        match &self.parts[..] {
            [part] => part.root,
            parts => {
                let roots: Vec<u8> = parts.iter().flat_map(|part| part.root.0).collect();
                keccak256(roots)
            }
        }
    }

    /// All segments in the order of the file.
    fn units(&self) -> impl Iterator<Item = Unit> + Send + '_ {
        let mut start = 0;
        self.parts.iter().enumerate().flat_map(move |(part, plan)| {
            let part_start = start;
            start += plan.shape.size();
            (0..plan.shape.segments()).map(move |index| Unit {
                part,
                index,
                offset: part_start + index * SEGMENT_BYTES as u64,
                bytes: plan.shape.file_bytes(index),
            })
        })
    }

    /// Position, shape and root of each part.
    fn ranges(&self) -> Vec<(u64, FileShape, B256)> {
        let mut start = 0;
        self.parts
            .iter()
            .map(|part| {
                let range = (start, part.shape, part.root);
                start += part.shape.size();
                range
            })
            .collect()
    }

    async fn has_content_of(&self, path: &Path) -> Result<bool, Error> {
        let (path, length, ranges) = (path.to_owned(), self.length, self.ranges());
        blocking(move || {
            let failed = |source| Error::File {
                path: path.clone(),
                source,
            };
            let file = File::open(&path).map_err(failed)?;
            let metadata = file.metadata().map_err(failed)?;
            if !metadata.is_file() || metadata.len() != length {
                return Ok(false);
            }
            Ok(first_mismatch(&file, &ranges).map_err(failed)?.is_none())
        })
        .await
    }
}

/// The expected and the found root of the first part that is not what it should be.
fn first_mismatch(
    file: &File,
    ranges: &[(u64, FileShape, B256)],
) -> io::Result<Option<(B256, B256)>> {
    struct Range<'a>(&'a File, u64, u64);
    impl Content for Range<'_> {
        fn size(&self) -> io::Result<u64> {
            Ok(self.2)
        }

        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.0.read_exact_at(buffer, self.1 + offset)
        }
    }
    for (start, shape, root) in ranges {
        let found = FileTree::read(*shape, &Range(file, *start, shape.size()))?.root();
        if found != *root {
            return Ok(Some((*root, found)));
        }
    }
    Ok(None)
}

/// The size of the target if it already has the root; `None` when it is absent or may be replaced.
async fn existing(
    destination: &Path,
    root: B256,
    options: &DownloadOptions,
) -> Result<Option<u64>, Error> {
    let (path, size, replace) = (destination.to_owned(), options.size, options.replace);
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
        } else if replace && metadata.is_file() {
            Ok(None)
        } else {
            Err(Error::DestinationExists { path })
        }
    })
    .await
}

/// Whether disk, quota or a limit on file sizes is exhausted.
fn is_disk_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// The file under construction. It is locked while it is open.
struct Partial {
    file: Arc<File>,
    path: PathBuf,
    destination: PathBuf,
    /// Bytes at its beginning that are there, up to the end of a segment.
    complete_bytes: u64,
}

impl Partial {
    fn open(destination: &Path, plans: &Plans) -> Result<Self, Error> {
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
            alloy_primitives::hex::encode(plans.name()),
            plans.length
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
        if length > plans.length {
            file.set_len(plans.length).map_err(failed)?;
        }
        let complete_bytes = plans
            .units()
            .map(|unit| unit.offset + unit.bytes as u64)
            .take_while(|end| *end <= length)
            .last()
            .unwrap_or_default();
        Ok(Self {
            file: Arc::new(file),
            path,
            destination: destination.to_owned(),
            complete_bytes,
        })
    }

    async fn write(mut self, unit: &Unit, data: Vec<u8>) -> Result<Self, Error> {
        debug_assert_eq!(
            unit.offset, self.complete_bytes,
            "segments are written in order"
        );
        let (file, path, offset) = (Arc::clone(&self.file), self.path.clone(), unit.offset);
        blocking(move || {
            write_all_at(&file, &data, offset).map_err(|source| {
                // What is kept for the next attempt would only keep the disk full.
                if is_disk_full(&source) {
                    let _ = fs::remove_file(&path);
                }
                Error::File { path, source }
            })
        })
        .await?;
        self.complete_bytes = unit.offset + unit.bytes as u64;
        Ok(self)
    }

    /// Checks the whole file from the disk and puts it in place, decrypted if wished; or gives the emptied file back,
    /// with what was wrong.
    async fn finish(
        self,
        plans: &Plans,
        decryption: Option<&Decryption>,
    ) -> Result<Result<(), (Self, Error)>, Error> {
        let (ranges, decryption) = (plans.ranges(), decryption.cloned());
        blocking(move || {
            let failed = |source| Error::File {
                path: self.path.clone(),
                source,
            };
            if let Some((root, found)) = first_mismatch(&self.file, &ranges).map_err(failed)? {
                self.file.set_len(0).map_err(failed)?;
                let emptied = Self {
                    complete_bytes: 0,
                    ..self
                };
                return Ok(Err((emptied, Error::RootMismatch { root, found })));
            }
            let complete = match decryption {
                None => self.path.clone(),
                Some(key) => self.decrypted(&key)?,
            };
            if complete == self.path {
                self.file.sync_all().map_err(failed)?;
            }
            // Linking instead of renaming would not replace a file that appeared meanwhile, but not every file system
            // can link; when the download began, the target was absent or to be replaced.
            fs::rename(&complete, &self.destination).map_err(failed)?;
            if complete != self.path {
                fs::remove_file(&self.path).map_err(failed)?;
            }
            let directory = directory_of(&self.destination);
            sync_directory(directory).map_err(|source| Error::File {
                path: directory.to_owned(),
                source,
            })?;
            Ok(Ok(()))
        })
        .await
    }

    /// The plaintext in a file of its own, on the disk. The ciphertext stays until the end, for another key.
    fn decrypted(&self, key: &Decryption) -> Result<PathBuf, Error> {
        let path = self.path.with_extension("plain");
        let failed = |source| Error::File {
            path: path.clone(),
            source,
        };
        let decrypt = || {
            let mut plain = File::create(&path).map_err(failed)?;
            let object = self.file.try_clone().map_err(|source| Error::File {
                path: self.path.clone(),
                source,
            })?;
            decrypt_open_file(object, &self.path, &mut plain, key)?;
            plain
                .flush()
                .and_then(|()| plain.sync_all())
                .map_err(failed)
        };
        match decrypt() {
            Ok(()) => Ok(path.clone()),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}
