// Every word of the pages, in English and Chinese. What the robot's own parts say stays as they say it.
const WORDS = {
  language: ["中文", "English"],
  live: ["Live", "实时"], attempts: ["Attempts", "尝试"], progress: ["Progress", "进展"], health: ["Health", "健康"],
  estop: ["E-STOP", "急停"], hold: ["HOLD", "保持"],
  your_name: ["your name", "你的名字"],
  lost: ["CONNECTION LOST: what is shown is old. Use the robot's own emergency stop.", "连接中断：画面是旧的。请使用机器人本体的急停按钮。"],
  lost_takeover: ["{0}'s connection was lost during a takeover: the robot holds. Resume goes on, take over corrects.", "{0} 接管期间连接中断：机器人保持不动。按“继续”或重新“接管”。"],
  background: ["Tab in the background: no key works here, not even E-STOP.", "页面在后台：此处任何按键都无效，包括急停。"],
  no_focus: ["Keyboard is elsewhere: click this page before you trust its keys.", "键盘焦点不在此页：先点击本页，按键才有效。"],
  nobody_controls: ["nobody in control", "无人控制"], you_control: ["you are in control", "由你控制"],
  controls: ["{0} is in control", "{0} 正在控制"], silent: ["(not answering)", "（无响应）"],
  take_control: ["Take control", "取得控制"], ask_control: ["Ask for control", "请求控制"], give_control: ["Give control away", "交出控制"],
  asks: ["{0} asks for control ({1} s)", "{0} 请求控制（{1} 秒）"], give: ["Give", "交给"], refuse: ["Keep it", "保留"],
  watching: ["{0} pages open", "{0} 个页面打开"],
  POLICY: ["POLICY", "策略"], TELEOP: ["PERSON", "人工"], HANDOVER: ["HANDOVER", "交接"], HOLD: ["HOLD", "保持"], ESTOP: ["E-STOP", "急停"], NONE: ["NO ARBITER", "无仲裁器"],
  because: ["because: {0}", "原因：{0}"], since: ["for {0} s", "已 {0} 秒"],
  sources: ["Who is heard", "信号来源"], policy: ["policy", "策略"], teleop: ["person's arms", "人工臂"], pedal: ["pedal", "踏板"], never: ["never", "从未"],
  commands: ["commands", "正在指挥"], pressed: ["pressed", "踩下"], up: ["up", "松开"],
  episode: ["Attempt", "尝试"], no_episode: ["no attempt yet", "尚无尝试"], IDLE: ["waiting", "等待"], RUNNING: ["running", "进行中"], ENDED: ["ended", "已结束"], RESETTING: ["resetting", "复位中"],
  corrections: ["corrections", "纠正"], task: ["task", "任务"], subtask: ["sub-task", "子任务"], advantage: ["advantage", "优势"], none: ["none", "无"],
  positive: ["positive", "正"], negative: ["negative", "负"], unconditioned: ["not conditioned", "无条件"],
  checkpoint: ["policy", "策略"], recorder: ["recorder", "记录"], dropped: ["{0} dropped", "丢失 {0}"],
  value: ["Value", "价值"], value_legend: ["green up, yellow level, red down", "绿升、黄平、红降"], no_value: ["no value function is loaded", "未加载价值函数"],
  left: ["Left arm", "左臂"], right: ["Right arm", "右臂"], grippers: ["Grippers", "夹爪"], arms: ["Joints", "关节"],
  command_line: ["line: commanded, dots: measured [rad]", "线：指令，点：测量 [rad]"],
  alarms: ["Alarms", "警报"], all_well: ["nothing is wrong", "一切正常"],
  start: ["Start", "开始"], success: ["Success", "成功"], failure: ["Failure", "失败"], discard: ["Discard", "丢弃"], undo: ["Undo", "撤销"],
  take_over: ["Take over", "接管"], hand_back: ["Hand back", "交还"], resume: ["Resume", "继续"], release: ["Release E-STOP", "解除急停"], release_sure: ["Sure? Press y", "确认？按 y"],
  reset_done: ["Cell is reset", "已复位"], next_stage: ["Stage done", "阶段完成"],
  relabel: ["{0} s left to put it right", "还有 {0} 秒可更正"],
  a_no_arbiter: ["no arbiter is heard: nobody commands the robot", "没有仲裁器：无人指挥机器人"],
  a_estop: ["emergency stop: release it, then resume", "急停中：先解除，再继续"],
  a_console: ["the console was lost in a takeover: resume, or take over", "接管时控制台失联：继续或接管"],
  a_stopped: ["stopped: resume, or take over", "已停止：继续或接管"],
  a_no_teleop_wanted: ["no teleop source is heard: the robot HOLDS until one is", "没有遥操作信号：机器人保持直到出现"],
  a_no_teleop: ["no teleop source is heard: taking over would only HOLD", "没有遥操作信号：接管只会保持"],
  a_start: ["no attempt is running", "没有进行中的尝试"],
  nodes: ["Nodes", "节点"], node_silent: ["silent for {0} s", "静默 {0} 秒"], streams: ["Streams", "数据流"], of_hz: ["of {0} Hz", "应为 {0} Hz"],
  computer: ["Computer", "计算机"], disk: ["Disk", "磁盘"], gpu: ["GPU", "GPU"], cpu: ["CPU", "CPU"], memory: ["memory", "内存"], no_gpu: ["no NVIDIA GPU found", "未发现 NVIDIA GPU"],
  free: ["{0} GB free", "剩余 {0} GB"], hours: ["{0} h of recording", "可录 {0} 小时"], hours_unknown: ["hours of recording: known after the first bag", "可录时间：首个录像后可知"], rate: ["at {0} MB/s, into {1}", "{0} MB/s，存入 {1}"],
  loops: ["Loop timing", "控制循环"], node: ["node", "节点"], hz: ["Hz", "Hz"], missed: ["missed", "错过"], realtime: ["priority", "优先级"],
  drops: ["Dropped messages", "丢失消息"], queued: ["queued", "排队"], written: ["written", "已写"],
  id: ["attempt", "编号"], outcome: ["outcome", "结果"], length: ["length", "时长"], corrected: ["corrected", "纠正占比"], reviewers: ["judged by", "评审"], iteration: ["iteration", "迭代"], source: ["source", "来源"],
  all: ["all", "全部"], filter: ["find", "查找"], unjudged: ["unjudged", "未评"], discarded: ["discarded", "已丢弃"], unknown: ["unknown", "未知"], shown: ["{0} of {1}", "{0}／{1}"],
  convert: ["Bring in {0} new bags", "导入 {0} 个新录像"], no_attempts: ["no attempts here yet", "这里还没有尝试"], agreement: ["Agreement", "一致性"], agree: ["{0} and {1}: {2} of {3} alike, κ {4}", "{0} 与 {1}：{3} 中 {2} 一致，κ {4}"],
  back: ["Back", "返回"], play: ["Play", "播放"], pause: ["Pause", "暂停"], rubric: ["Rubric", "评分表"], yes: ["yes", "是"], no: ["no", "否"], recorded: ["recorded", "录制时"], judgement: ["Judgement", "评判"], log: ["Log", "记录"],
  failed_here: ["Lost here", "此刻失败"], stage_here: ["{0} begins here", "{0} 由此开始"], next: ["Next", "下一个"], previous: ["Previous", "上一个"], before_undo: ["taken back", "已撤回"], need_name: ["Say who you are first (top right).", "请先在右上角填写名字。"],
  legend: ["purple: a person commands · grey: held · green/red below: advantage positive/negative", "紫：人工 · 灰：保持 · 下方绿/红：优势正/负"],
  keys_attempt: ["←→ 1 tick, ⇧ 10 · space play · s f d judge · 1…9 rubric · l lost here · u undo · n p next, previous · Esc back", "←→ 1 帧，⇧ 10 · 空格 播放 · s f d 评判 · 1…9 评分 · l 失败点 · u 撤销 · n p 下/上一个 · Esc 返回"],
  no_runs: ["no runs found", "没有运行"], run: ["run", "运行"], success_rate: ["success", "成功率"], throughput: ["successes per hour", "每小时成功数"], correction_rate: ["share commanded by a person", "人工指挥占比"], length_s: ["length of an attempt [s]", "尝试时长 [秒]"], success_length: ["of a success", "成功时长"],
  evaluated_by: ["evaluated by itself", "单独评估"], collected_by: ["attempts of this policy, with corrections, that the next one learned from", "该策略的尝试（含人工纠正），供下一个策略学习"], by_policy: ["collected with {0}", "由 {0} 采集"], simulation: ["evaluated in simulation", "仿真评估"], bags: ["evaluated from recordings", "录像评估"], demonstrations: ["demonstrations", "示范"],
  results: ["How policies do, with 95 % intervals", "策略表现（95 % 区间）"], how: ["how", "方式"], evaluated: ["attempts", "尝试数"], old: ["trained anew since", "此后已重新训练"],
  failures: ["Failures by reason and stage, with 95 % intervals", "失败原因与阶段（95 % 区间）"], reason: ["reason · stage", "原因 · 阶段"], count: ["of", "次数"], share: ["share", "占比"], no_failures: ["no failures", "没有失败"],
  labels_gates: ["Labels and the value function's gates", "标签与价值函数检查"], threshold: ["threshold", "阈值"], positive_share: ["positive frames", "正帧占比"], gates: ["gates", "检查"],
  lineage: ["Lineage of every checkpoint", "每个检查点的来历"], model: ["model", "模型"], begins_as: ["begins as", "起点"], learned_from: ["learned from bags in", "学习的录像"], labelled_by: ["labelled by value function", "标注用价值函数"], made: ["made", "时间"], code: ["code", "代码"], scratch: ["from scratch", "从零"],
  curves: ["Training curves", "训练曲线"], stage: ["stage", "阶段"], stages_took: ["Seconds of every stage", "各阶段用时"],
  next_iteration: ["The next iteration", "下一次迭代"], plan_next: ["Next iteration …", "下一次迭代……"], planning: ["looking at the run …", "正在查看运行……"], no_learner: ["no learner is heard: ./recap up starts one, and ./recap iterate needs none", "没有学习节点：./recap up 会启动，./recap iterate 则不需要"],
  will_make: ["Iteration {0} would", "第 {0} 次迭代将"], does_episodes: ["take {0} attempts, {1} of them not converted yet", "使用 {0} 次尝试，其中 {1} 次尚未转换"], does_value: ["train the pre-trained value function on all of them, {0} steps", "用全部尝试训练预训练的价值函数，{0} 步"], does_labels: ["label every frame; {0} % of the policy's own are to be positive", "标注每一帧；策略自身的帧中 {0} % 为正"], does_policy: ["train the pre-trained policy on the labels, {0} steps", "按标签训练预训练的策略，{0} 步"],
  altogether: ["altogether", "合计"], estimate_like: ["as iteration {0} took, scaled to this data", "按第 {0} 次迭代用时折算"], no_estimate: ["no estimate yet", "尚无估计"], will_offer: ["If it passes the gates and is no worse, the learner then offers it to the policy node, which loads it between attempts.", "若通过检查且不更差，学习节点把策略交给策略节点，在两次尝试之间加载。"], begun: ["begun and not ended, by a process that is at work or was killed: {0}", "已开始但未结束（进行中或被终止）：{0}"],
  withheld: ["{0} is not offered to the robot: {1}", "{0} 未交给机器人：{1}"], accept_anyway: ["Accept anyway", "仍然接受"], accept_sure: ["Sure? Accept it", "确认接受？"], leave_it: ["Leave it", "不采用"],
  start_training: ["Start iteration {0}", "开始第 {0} 次迭代"], not_now: ["Not now", "暂不"], cancel: ["Cancel", "取消"], cancel_sure: ["Sure? Cancel", "确认取消？"], expected: ["of about {0}", "预计 {0}"], of_seconds: ["{0} s", "{0} 秒"], of_minutes: ["{0} min", "{0} 分钟"], of_hours: ["{0} h", "{0} 小时"],
};

let language = localStorage.getItem("language") === "zh" || (!localStorage.getItem("language") && navigator.language.startsWith("zh")) ? 1 : 0;

export function say(key, ...values) {
  const text = WORDS[key] ? WORDS[key][language] : key;
  return values.length ? text.replace(/\{(\d)\}/g, (_, i) => values[i]) : text;
}

export function otherLanguage() {
  language = 1 - language;
  localStorage.setItem("language", language ? "zh" : "en");
  document.documentElement.lang = language ? "zh-CN" : "en";
}
document.documentElement.lang = language ? "zh-CN" : "en";
