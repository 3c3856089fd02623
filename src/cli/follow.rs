//! `bridge backfill --follow`: backfill and mirror in one process.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::mirror::Watch;
use super::progress::Display;
use super::summary::Summary;
use super::{Context, Exit, Failure, Limits, Stores};
use crate::backfill::{self, BackfillError, Options};
use crate::mirror;

/// Copies, mirrors meanwhile, and mirrors on until told to stop. When one of the two fails, the other is stopped too;
/// what is committed stays.
pub(super) async fn run(options: &Options, limits: &Limits, context: &Context) -> Result<Exit, Failure> {
    let stores = context.until_stopped(context.stores(limits.workers)).await?;
    let target = context.until_stopped(context.keyed_target()).await?;
    let progress = Arc::new(mirror::Progress::default());
    let stop = context.stop.child_token();
    let follow = Follow { options, stores: &stores, progress: &progress, stop: &stop, planned: Notify::new(), context };
    let mirrored = async {
        // Only with the plan it is known what the mirror need not apply.
        follow.planned.notified().await;
        let options = mirror::Options { lease: limits.lease };
        let done = mirror::run(&stores.source, &target, &options, progress.clone(), stop.clone()).await;
        stop.cancel();
        done
    };
    let copied = async {
        let done = follow.copy_and_watch().await;
        stop.cancel();
        follow.planned.notify_one();
        done
    };
    let (mirrored, copied) = tokio::join!(mirrored, copied);
    mirrored?;
    copied.map(|()| Exit::Clean)
}

struct Follow<'a> {
    options: &'a Options,
    stores: &'a Stores,
    progress: &'a Arc<mirror::Progress>,
    stop: &'a CancellationToken,
    planned: Notify,
    context: &'a Context,
}

impl Follow<'_> {
    async fn copy_and_watch(&self) -> Result<(), Failure> {
        self.copy().await?;
        let mut watch = Watch::new(self.context.output, self.progress.clone());
        watch.until_level(&self.stores.source, &self.stores.target, self.stop).await?;
        watch.until(self.stop).await?;
        watch.summary()
    }

    async fn copy(&self) -> Result<(), Failure> {
        let display = Display::new(self.context.output);
        let begun = |progress: &[_]| {
            display.begin(progress);
            self.planned.notify_one();
        };
        let Stores { source, target, .. } = self.stores;
        let work = backfill::run(source, target, self.options, begun, self.stop.child_token());
        let copied = display.during(work, self.stop).await.unwrap_or(Err(BackfillError::Interrupted))?;
        let (read, taken) = display.done();
        drop(display);
        Summary { copied: &copied, refused: &[], read, taken, dry_run: false }.print(self.context.output)
    }
}
