"""The ROS shell of recap_learner: the only modules here that import rclpy."""
