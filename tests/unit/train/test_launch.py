"""GPU の要る起動設定を、GPU なしで確かめられるところまで: accelerate が読み、その値の通りに組み立てる。"""

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

from lib.files import REPOSITORY

LAUNCH = REPOSITORY / "data" / "launch"


def environment_of(name):
    """accelerate launch が、子のプロセスに渡す環境変数。"""
    arguments = launch_command_parser().parse_args(["--config_file", str(LAUNCH / name), "train.py"])
    return prepare_multi_gpu_env(_validate_launch_command(arguments)[0])


@pytest.mark.parametrize("name, kind", [("ddp.yaml", DistributedType.MULTI_GPU), ("fsdp.yaml", DistributedType.FSDP)])
def test_accelerate_reads_the_configuration_and_builds_what_it_describes(monkeypatch, name, kind):
    config = load_config_from_file(str(LAUNCH / name))
    assert config.distributed_type == kind and config.num_processes == 2 and not config.use_cpu
    environment = environment_of(name)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    if kind != DistributedType.FSDP:
        return
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading and str(plugin.state_dict_type).endswith("SHARDED_STATE_DICT")
