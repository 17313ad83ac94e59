"""The sharding strategy of the hardware overlays: Lightning's, told only what it can't work out."""

from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy


def check_accumulation(strategy: Strategy, accumulate_grad_batches: int) -> None:
    """Refuse what a strategy would get wrong without a word.

    Raises:
        ValueError: gradients are accumulated under DeepSpeed, which divides each micro-batch's by their number alone.
    """
    if isinstance(strategy, DeepSpeedStrategy) and accumulate_grad_batches > 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches is {accumulate_grad_batches}: DeepSpeed keeps the gradients to itself, "
            "so that micro-batches of different length would not weigh by their tokens; set it to 1, or train with "
            "recipes/hardware/fsdp2.yaml"
        )


class ModelParallel(ModelParallelStrategy):
    """FSDP2, tensor parallelism or both, over all the devices there are.

    Lightning's own wants both sizes, so that a recipe would have to know the cluster. How the networks are cut is in
    ``align.model.parallel``.

    Args:
        tensor_parallel_size: devices that split each matrix among them, at best those of one machine; the rest of the
            devices share the data and the weights by FSDP2. It divides the number of devices.
        save_distributed_checkpoint: each rank writes its part, a folder in all; false: rank 0 gathers and writes one
            file, for networks that fit into its memory.
    """

    def __init__(self, tensor_parallel_size: int = 1, save_distributed_checkpoint: bool = True) -> None:
        """Keep the settings."""
        super().__init__("auto", tensor_parallel_size, save_distributed_checkpoint=save_distributed_checkpoint)
        self._tensor_devices = tensor_parallel_size

    def setup_environment(self) -> None:
        """Deal the devices out.

        Raises:
            ValueError: they can't be dealt out so.
        """
        devices = self.num_nodes * self.num_processes
        if self._tensor_devices < 1 or devices % self._tensor_devices:
            raise ValueError(
                f"tensor_parallel_size is {self._tensor_devices}: it must divide the number of devices ({devices})"
            )
        self._data_parallel_size = devices // self._tensor_devices
        super().setup_environment()
