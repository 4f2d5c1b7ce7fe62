"""What a user touches: the Recommender and the model card."""

from genrec.serving.recommender import Explanation, Recommendation, Recommender

__all__ = ["Explanation", "Recommendation", "Recommender"]
