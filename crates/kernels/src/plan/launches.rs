//! Launches, one behind the other, and the lists that they ask for.
use crate::arguments::{ScoreArgs, arguments, of_problem};
use crate::call::{CallError, Task, TooManyBlocks, check_workspace};
use crate::config::{Common, Config, HopperForm};
use crate::geometry::{heads, key_blocks, query_blocks, query_tiles, schedule};
use crate::gpu::Gpu;
use crate::packed::PackedArgs;
use crate::packed::lists::{Listed, Lists};
use crate::padding;
use crate::parts::args::ProblemArgs;
use crate::parts::overlays::OverlayArgs;
use crate::parts::width::WidthArgs;
use signflash_core::Problem;
use signflash_ptx::Arg;

/// The tasks of a call, one behind the other.
pub(super) struct Plan<'a> {
    pub(super) problem: &'a Problem,
    pub(super) gpu: Gpu,
    pub(super) args: ProblemArgs,
    pub(super) scores: ScoreArgs,
    /// Of packed sequences.
    pub(super) lists: Option<Lists>,
    pub(super) tasks: Vec<Task>,
}

/// A launch: of which kernel, of how many blocks, and where the tiles are listed that they own.
pub(super) struct Launch {
    pub(super) config: Config,
    pub(super) blocks: u64,
    pub(super) list: Option<PackedArgs>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(problem: &'a Problem, gpu: Gpu, scores: ScoreArgs) -> Self {
        Plan { problem, gpu, args: of_problem(problem), scores, lists: None, tasks: vec![] }
    }

    /// Finds the keys that a mask leaves, if it is the same for all queries. The address is that of the workspace.
    pub(super) fn ranges_task(&mut self, workspace: u64) -> Result<(), CallError> {
        let OverlayArgs { mask, padding, .. } = self.scores.overlays;
        let (Some(shape), Some(mask), Some(padding)) = (self.problem.mask(), mask, padding) else {
            return Ok(());
        };
        check_workspace(workspace)?;
        let (blocks, args) = padding::launch(shape, mask.mask, padding.ranges);
        self.push(Config::Padding, blocks, args)
    }

    /// A kernel whose blocks own so many queries each.
    pub(super) fn by_queries(&mut self, config: Config, rows: u32) -> Launch {
        let list = self.list(Listed { rows, keys: false }, 1);
        Launch { config, blocks: query_blocks(self.problem, rows), list }
    }

    /// A kernel whose blocks own so many keys each.
    pub(super) fn by_keys(&mut self, config: Config, rows: u32) -> Launch {
        let list = self.list(Listed { rows, keys: true }, 1);
        Launch { config, blocks: key_blocks(self.problem, rows), list }
    }

    /// Where tiles of packed sequences are listed, of which one is `tiles_each` of the kernel's.
    pub(super) fn list(&mut self, listed: Listed, tiles_each: u32) -> Option<PackedArgs> {
        self.lists.as_mut().map(|lists| lists.of(listed, tiles_each))
    }

    /// A kernel that makes scores.
    pub(super) fn launch(&mut self, launch: Launch, own: &dyn Fn(&mut Vec<Arg>)) -> Result<(), CallError> {
        let args = arguments(self.args, launch.list, own, self.scores);
        self.push(launch.config, launch.blocks, args)
    }

    /// The same that reads v, by the portable kernels, who check columns themselves.
    pub(super) fn launch_with_widths(
        &mut self,
        launch: Launch,
        common: &Common,
        own: &dyn Fn(&mut Vec<Arg>),
    ) -> Result<(), CallError> {
        let widths = WidthArgs::of(self.problem, common);
        self.launch(launch, &|list| {
            own(list);
            widths.into_iter().for_each(|widths| widths.push(list));
        })
    }

    /// Work on rows, which knows no scores.
    pub(super) fn launch_on_rows(
        &mut self,
        launch: Launch,
        problem: ProblemArgs,
        own: &dyn Fn(&mut Vec<Arg>),
    ) -> Result<(), CallError> {
        let args = arguments(problem, launch.list, own, ScoreArgs::default());
        self.push(launch.config, launch.blocks, args)
    }

    /// A kernel of Hopper's whose blocks take several tiles of queries each.
    pub(super) fn launch_scheduled(
        &mut self,
        config: Config,
        form: &HopperForm,
        (triangle, blocks_each): (bool, u64),
        own: &dyn Fn(&mut Vec<Arg>),
    ) -> Result<(), CallError> {
        if self.lists.is_some() {
            return self.launch_listed(config, form, triangle, own);
        }
        let (schedule, blocks) = schedule(self.problem, form.rows(), triangle, (self.gpu, blocks_each))?;
        let own = |list: &mut Vec<Arg>| {
            schedule.push(list);
            own(list);
        };
        self.launch(Launch { config, blocks, list: None }, &own)
    }

    /// The same of packed sequences.
    pub(super) fn launch_listed(
        &mut self,
        config: Config,
        form: &HopperForm,
        triangle: bool,
        own: &dyn Fn(&mut Vec<Arg>),
    ) -> Result<(), CallError> {
        let (rows, gpu_blocks) = (form.rows(), u64::from(self.gpu.sm_count));
        let pairs = triangle && heads(self.problem) * query_tiles(self.problem, rows) > gpu_blocks;
        let tiles_each = if pairs { 2 } else { 1 };
        let units = query_blocks(self.problem, tiles_each * rows);
        if i32::try_from(units + 2 * gpu_blocks).is_err() {
            return Err(TooManyBlocks { blocks: units }.into());
        }
        let list = self.list(Listed { rows: tiles_each * rows, keys: false }, tiles_each);
        self.launch(Launch { config, blocks: units.min(gpu_blocks), list }, own)
    }

    pub(super) fn push(&mut self, config: Config, blocks: u64, args: Vec<Arg>) -> Result<(), CallError> {
        let grid = i32::try_from(blocks).map_err(|_| TooManyBlocks { blocks })? as u32;
        if grid > 0 {
            self.tasks.push(Task::Launch { config, grid, args });
        }
        Ok(())
    }

    /// All tasks; before them the lists that they ask for are made.
    pub(super) fn finish(mut self) -> Result<Vec<Task>, CallError> {
        let asked = std::mem::take(&mut self.tasks);
        if let Some(lists) = self.lists.take().filter(|_| !asked.is_empty()) {
            let (blocks, args) = lists.launch();
            self.push(Config::Tiles, blocks, args)?;
        }
        self.tasks.extend(asked);
        Ok(self.tasks)
    }
}
