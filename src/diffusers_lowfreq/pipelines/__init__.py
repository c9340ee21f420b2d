from .pipeline_lowfreq import LowFreqPipeline
from .pipeline_lowfreq_text_to_image import LowFreqTextToImagePipeline
from .pipeline_lowfreq_upscale import LowFreqUpscalePipeline
from .pipeline_output import LowFreqPipelineOutput


__all__ = ["LowFreqPipeline", "LowFreqPipelineOutput", "LowFreqTextToImagePipeline", "LowFreqUpscalePipeline"]
