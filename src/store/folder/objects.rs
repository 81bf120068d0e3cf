//! What a folder is to the library of object stores.

use std::fmt;
use std::io;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    RenameOptions, Result,
};

use super::{Folder, Found, IRREGULAR, modified};

async fn blocking<T: Send + 'static>(
    folder: &Folder,
    path: &Path,
    work: impl FnOnce(&Folder, &str) -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let (folder, key) = (folder.clone(), path.as_ref().to_owned());
    let done = match tokio::runtime::Handle::try_current() {
        Ok(runtime) => {
            let key = key.clone();
            runtime.spawn_blocking(move || work(&folder, &key)).await?
        }
        Err(_) => work(&folder, &key),
    };
    done.map_err(|source| failed(source, key))
}

fn failed(source: io::Error, path: String) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound => Error::NotFound {
            path,
            source: Box::new(source),
        },
        _ => Error::Generic {
            store: "folder",
            source: Box::new(source),
        },
    }
}

fn unsupported<T>(operation: &str) -> Result<T> {
    Err(Error::NotImplemented {
        operation: operation.to_owned(),
        implementer: "a store's folder".to_owned(),
    })
}

fn meta(found: Found) -> Result<ObjectMeta> {
    Ok(ObjectMeta {
        location: Path::parse(found.key)?,
        last_modified: found.time,
        size: found.bytes,
        e_tag: (!found.regular).then(|| IRREGULAR.to_owned()),
        version: None,
    })
}

impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Folder({})", self.path.display())
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Folder {
    async fn put_opts(
        &self,
        to: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let replace = match opts.mode {
            PutMode::Create => false,
            PutMode::Overwrite => true,
            PutMode::Update(_) => return unsupported("an update on a condition"),
        };
        let write = move |folder: &Folder, key: &str| folder.write(key, &payload, replace);
        match blocking(self, to, write).await? {
            true => Ok(PutResult {
                e_tag: None,
                version: None,
                extensions: Default::default(),
            }),
            false => Err(Error::AlreadyExists {
                path: to.to_string(),
                source: "there is an object".into(),
            }),
        }
    }

    async fn put_multipart_opts(
        &self,
        _to: &Path,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        unsupported("an upload in parts")
    }

    async fn get_opts(&self, from: &Path, options: GetOptions) -> Result<GetResult> {
        let (file, stat) = blocking(self, from, |folder, key| folder.read(key)).await?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let range = match &options.range {
            None => 0..size,
            Some(range) => range.as_range(size).map_err(|e| Error::Generic {
                store: "folder",
                source: Box::new(e),
            })?,
        };
        Ok(GetResult {
            payload: GetResultPayload::File(file, self.path.join(from.as_ref())),
            meta: ObjectMeta {
                location: from.clone(),
                last_modified: modified(&stat),
                size,
                e_tag: None,
                version: None,
            },
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let folder = self.clone();
        let delete = move |path: Path| {
            let folder = folder.clone();
            async move {
                blocking(&folder, &path, |folder, key| folder.delete(key)).await?;
                Ok(path)
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (folder, prefix) = (self.clone(), prefix.cloned().unwrap_or_default());
        let found = async move {
            let found = blocking(&folder, &prefix, |folder, key| folder.list(key)).await?;
            Ok::<_, Error>(futures_util::stream::iter(found.into_iter().map(meta)))
        };
        futures_util::stream::once(found).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        let level = blocking(self, &prefix, |folder, key| folder.level(key)).await?;
        let folders = level.0.into_iter().map(|key| Ok(Path::parse(key)?));
        Ok(ListResult {
            common_prefixes: folders.collect::<Result<_>>()?,
            objects: level.1.into_iter().map(meta).collect::<Result<_>>()?,
            extensions: Default::default(),
        })
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        unsupported("copying")
    }

    async fn rename_opts(&self, from: &Path, to: &Path, _options: RenameOptions) -> Result<()> {
        let to = to.as_ref().to_owned();
        blocking(self, from, move |folder, key| folder.rename(key, &to)).await
    }
}
