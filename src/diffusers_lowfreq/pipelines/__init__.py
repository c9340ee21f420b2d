from .pipeline_lowfreq import LowFreqPipeline
from .pipeline_lowfreq_upscale import LowFreqUpscalePipeline
from .pipeline_output import LowFreqPipelineOutput


__all__ = ["LowFreqPipeline", "LowFreqPipelineOutput", "LowFreqUpscalePipeline"]
