"""The class of every code point by Unicode. Written by tools/unicode_classes.py: do not edit.

Lu, Ll, Lt, Lm and Lo are Unicode's general categories; M and N are all marks and all numbers; space is the property
White_Space, which is what `\\s` means in the `regex` package.
"""

import base64
import zlib

import numpy as np

CLASSES = ("other", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "N", "space")
UNICODE_VERSION = "18.0.0"


def code_point_classes(version: str = UNICODE_VERSION) -> np.ndarray:
    """For each of the 0x110000 code points its place in CLASSES, as uint8; `version` is a key of TABLES."""
    data = np.frombuffer(zlib.decompress(base64.b85decode("".join(TABLES[version].split()))), np.uint8)
    runs = data.view("<u4")
    return np.repeat((runs >> 24).astype(np.uint8), runs & 0xFFFFFF)


# Runs of one class in the order of the code points, four bytes each: the length, and above it the class.
TABLES = {
    "18.0.0": """
c-rk-&5vA15r5sUyWgAHnf>y5*SqW4UEAx;uDy=eb{xkd3L61NR!|5?LBIio5FCgV1tGzK8wYYh91tgRLnvpi+#*DB=9B|mEVv{70z_BWuU^+QZ)
{^?**HF|YPw&4R99D3SO2PaP*s($s&+Y26X`;v!>VeUNH=0tU}}f>z5zO5>ZzTL?G2Z0&6LWX>S}yji`7J9dvhwbqu(u4s(&h}ea!tIC$&BGbx*y
NYpmDx)a!os0p_za#xL8WofqC5e#gIBwVn0*vF@pz!BhPd+fzxKLNByz-2?Rh0{8Re-=hC>u}?LMbe?^pYuJ}L_%^o`={r>wdd8AA!b@sj!_OJ`Q
GBnkM_pOgu!M5-t>&ECXR(1tDN8?Hu1Y((7U|KGwf}UMgr`-%?WgR#c#3GXm+jh--5<awSooMrthZ!i0qv$}wDmy!HlrJ&_H-^yBAtu%(N3!!KBr
ua$^6M!NAa5D{!|~ni`WbCS)jQCQzvscE_>=5=kxGcei4+$*@|=%{l5`^&v9Qrj~MYx{5`<94n7a#q&}<6KlO0~&>A$ZBT&q_9@|iz<Mnx3-zo6l
Aiku&2Uznd@E_+6FQPB;v<%v?JZL?MhhdIQ-9m0pv8TtLc;Qv%6xr2~z0G^o$y3Ic`CGJ6`%u*dA2L_q-y-KuUcy_zzR%*#_E5zmon695H!kAx&|
pnUKZG}GllFa1@iI_rG56rb7jkNqE(?`4FJzuO*~on&6#eeEPqXIl+b2IQo8CP#nU7|u#*=-il`I^}R>@O%suit4N7z@7{ivsHQRYo^l8ucc4`Z}
%i+xxFUF=!6DaLN5ean>2l>5-KY#U_*-9GfqKfH(hXYt|xlaDF+iys@IU#Wu!=rd~`13x1A++-h@<~f0RLLN8uUB*6%{~4%#wa~d**?B1ZcniM`d
rE7i{W}657X11=w-Y;|KF{^&k_SCi)DP8|@U4kQpW8VVBXvBH&hB8GHSkD0ujD-sB^6&HI<N~pUQy?k&*uYu53uKOGt!Ik8``GxCS)HMobutdl2M
KCQGR}uZBWj-w2yl#j`pCI=aU#V#o)J1wpUyDcwK)`l+RQT)^7pjn??QSKx@cjh4nDmES<Ao1HS>d$sNn>mv|h)T9O{Wmi-9XXY$$0kk5eiImvDg
^%k}>F6>6?Utk@OGeOR7(WgrGi0G2C50O88I|u!}4t`+&;Vi}x8@$DPUTuSi5%g)qW2HH^l<v|R4xwKg@Q1OkIS-#B{`)$QoA{b!{~0vzW2}#S+N
<%~0(|M^NS2__wOZ!@@~IK~j8%+u$Z=2lz6*VB(N}!DtR)~08mPF?vtAnLgIQE^JqbH7Y>S;;*Gi6Ye*4)t?ilyYC}$gG;*Ou<JJ2)w_~_u79G;k
cXc<4UI4hD5X;I(a<GaR~`l$4sM_-idk^&p56h2#Pyua@Gj=PiGdsDr`93JQOtbWnow-c^!ajv(QK^Jp=!O2|;ZRkFnen(&Kj&Mg@!djh*4>aCf7
noPgXT%g<S5lYD9nJ{<-L2QEn8fk-O6Ix7{L8t}d>k9U9O>(PziECP%kdm(?zj{?PT_9#eQ+Mvg9kx3T>Z?Ro~YcA(lNci-Fc1}x<RZfI%=U;N!M
ON`~`d?#XxI(C+OnUhow6lE2XjjY}o!>zFSb6W}V}lCS>fv*_`)F?HtFtUf;)U9;5nZj#Hh)I~P&+t&GE@`#51=M~I<!a{NesCEZ`544NHvpQ7?{
{P4kg<&P=W`YOk*KXH|h@p-kc;<XXq6P(28g4wL}?9=}d6%4K#<~ZIx20S}qkGHa1!+F*n!3_WFaqCaF4{`1PmN%FscmJqm><jv^<G4>CXHxc;IA
NZBj<ypIpJm}6JG@lxZu)+T@0H+)FEEag{NGjJ)kAgHUdG+8E^tJ-)1C&VYH<%9<1RYM{xRKa=YbtcJQOk}BsjcBoYY}y^S}{gJ#B%>1^7e5`HYU
o8f!5Hej|90Rk#h&Q+Z8E_kj0z*r)i2A@Ctv(7rQGupY;2>+~9V%j%8z^PIw?%XR(kBJax@&Z#RzW8nC<;dy@$%X>VZ9kDFs{FS{)e2fdc&dk8-?
?f7huii3A2dZPNk8&CN3L}p44vV12YTS1tJu%~r&RoU?-6hC#8~fEKPn^^K9OgB^TnsQJ&G!P@M_ut}BmF7#InL9J82d^X3cUsTA@u)eN<Xgv_ow
<z<g0dgtqriT6i)zSOmX}k^n-p2MkLr{o8{eH;B(x>Kl?h`$^P!brgss8?;}?u_Be-FenGuYQaO40Zt-1m&fT4*R^!|-te>mEyISab01kTrbe=Jr
PX3}Nhehr{@Z2>}if`634%uvD9Ta;V75jxeN3)7NhQ`u1pwBPm98-#M77=GYkGEU(G`3s0?B_Z>aiZ`|@p%L0Q@%AO>p+UjWZzE1KOi5{EW!qckf
E&k1lB{pmw{Q+`lDS}w`2JR->1x&Df#B)bD<|4Mkkmc){x@N)qLOU;-Xk*|H61>gMI6;Q_1NpW*IoyFApEOn)5PY0$(fn!Bt@7r1P5!!@a;5AjR>
`3icfSI9zADN!acdkJb5DgLX8=C5(-`K*~F;tNdQTc)RfTCd)%~t;=JcQ&_N3yd0sg%X#TeM~3RnpUL@wMlfjuen!YQ$U2C=G6P#T3R@pyEtfHdS
L<>Qkt<aB_TF4!nUC`d<Ax0e*>~l4JG+&2?5X;J!qIiU)~UR$J}<}MX#%`^8M61&dza#nE##S2vRo_KPip%<WG8DKaJ(Y93c~GE|D~K4@K{%~hx^
z#%d3<93dbhttpai(g6}8(NcMk#f1_{TW4~|WpFM%Iqg67q%12n0`wGSR?Fv~*ZiD!`rN(?tt+`RTT<N=s-*h+H&-uj8cbH6*eLc_i-^pkheh4^|
e-nAYuOol7pkyWa#Pcd10Zr{DIQO=){sx>G;dYN6??Eng&s!3;)+rwtiZOO@#_GPlXP*z0zjLZy<o^$xL6Vcwv7f|7XLD{Z%`wh7-|(h-8xVbA6Z
Nh7O<no#^P9UQ7s><uDWA8^AWrlh^f_|f+m#eYFCdP5Z-MRQi#F=v2Fn()ck@wfc+>Jax3ix~>-ut0RynF<??+e*{I46S{I%rIPr_D7F26U7Z|oy
3lf2VM${yAb3#}t|jnp0@|L2sfZ{&9zB*PR>SoKa(-f+NHXs$HwUr$$l7yIz-NPh$$^Q)TQ^jxENMqAyzht}bY8v6h-j=_5*{cZ?vCX+0G5!+EP{
ub6h#u+)tIwkKT!dDg{W1C_Rx!;7lhQGh8-b)1Na;xll3v&21{I<MZX_c=adF-J43VhZG^bX6pc^9!X#nBshTZ%UUR_gV8O{?%^DGM&#0`oNr^Of
=D)Oc3m$?$tqF=*KawrMn0t=nq;??)%#XC3|5Q6{YTldjY6Vy_a*@y89E6IYd=#l1DGs+f%I_zjnIB;CQUtGB;>ZyyD(Sbc=pk%hh!4==LaIC*EW
G=0`g`BbunsDE_5OzV7y?@u24NH*<k5tqGc*!LLZGLRcj{_A7I=Pq*iT$g=S_uk?|<=<+RU&h;*?!K<iIvVq?I&)mleURvf@Bst9kJ39m@-OBr$K
pZW7Z4w7aq`c=H_HEoP%Qi<+#?0Q{iB+1vzWJxuZ9JG`g{*67BxNJ%lA-y<KK^#{ag`qx*7Zl-%HbPmAcrJ>OXJ!4cOm@@R4zlyYDmZy}iWke!0r
?UYYPY_;x(cej7JqE7HHk!CpJT<6k&a`Jca6RmX>w|G*8ae-gg%FI)W^%D$wk
""",
    "16.0.0": """
c-rk-O^h8!5uWbp>6!QTz5Vlge{Ao1vukhs8?Ws+#(=;GVq_%>1_>lMAP@oxVuf&lLvFd`!jTi)5XzY=H-sQux!?m52!RmS962GXy1tsO*UYnxA+
m9NSk;@J{;8_2s;>TOc2reWQ&rt6QAc!%=(wudmgq5RibDMu?~j3wgf`sIQ-3GVz81>Q4Y$>Jw?WNJslVH#e*C)=%I!}j^^bY{<D`C|y&h=S=Nj^
cfp$C2Kg4=|&irM6^lOy2fZz02o4)gYKh{0<b9kzsVt*=WTiAuwZFq?BFJu3Y6Q%eUXiPOBx+pO*v=Yk#Vp~`t`es$dfw{Dg@{;=3h;t5c6z?nSQ
U9zmtl*hqtJ^pGtUmBT>av-Au1Y_-O7!r_+J8Pv;?rv1{zG<NJVmrRkiAGTfc^d~wNtKBT@-ue_6Wb9q1?{>C>}K&i}*a+Cb~fF<e$~9oKJyrvF0
eXah?`rJh#VhAm>6}7MX`AH0T;Zo*N!ZF{J^Y%`zy@vm-GvjsG(JUXZcPB67p$==TWo2FQtd(wKGOpT~p|XbnnoM9ww0s1LUVk*{I-Ho-sf+;kEL
<5|eO3I1vA_!7o4PphD<=!4}+JdATr8kTZ@&N-9J9&{aRwnld~bno+C_4?HLb^Q)~%sy0g!H2FD<+tj&*O&4ZvG4PE^8?iI$Y+-F(a(!~JhqU@*o
X4QebT-!7+yw37Iz<BnnF(<#@B|b%uAW)UN?G=h{d=E?bE#VhxVxjz26?W%tt#m^Xb0SMi&9k-sn?#stv6{C)n2p`%%yOqOP0PWFMOn4^#B-ihbA
sT^^9z6?3;Hwpd^H1N+d4Zd>C6{XPt>KfaIt=kXE$-F9d6uW@XGaitBO#h7{PIK&aP=QhW<w9XN%6Z5=j>?-z2<Il+KtB1|i#?NCB$2-Ude@e3Q{
vCo34}P1xc2GazG0zX!QUkhKw2#f4h^>joCie>_H|lv}o884c8)iS&@}9?%YAjJ3I0ZXiGv`*5&j)@V;m`2~(ev~UebadpbBv3@#PHhasK$HJUo*
)*sApZ;#{-i;H=thD)7&-X-nU)$S6{?<+kUoqey)1BaZ7l<QM7*=w1z&`#150s@;Un@@Ed`b-1X9bMdo3QCE4*SIgYS@rkK47{fxw(lkOJK?%_Mr
!f&+wMX>=r6ZGs>d#ZGgn64QAQ2q0}ec10c@B{ykdzeRk@Rsa(brL*GU{4d7E3L6(Y?o!Y0Q)+Ict~ySX~Y~o+pfvHiLdP(KcnS+3i&!&KVC*Gy+
mXM_FNk|N6=4=+-GWXqzjVwr1z&_&mG2Uj8|DA@}QB)2OF_V2YYbKMz2TV2Tpvk_v_l|k=FO0q<N>fXOf;h=_K5Iitj$p=;NcKXL@*I_MsEp$m6U
?F{DF#cc1qbTN<J|b`fLoT$dD>P-Sr0+T#56z<b=Cyf^IuYcx2o=Z&Ly-)&2KhjYEV1iGB-3PJBu=o2*dQ;ZB(aYtN%tij|57H6&ttgDtYVg{!xX
~@q#zKHnU%j-=}66AfQ>s%H7^;~H0QRj~neNFB+?f2=K&XM+RNV($--c~;V-w6Xa5NspV&;03$stFkzv-{hh=g6U3<hp939(I*%?IXy)fN!K6XhZ
G<eZKmrbXRhvH23eE_+Q9(3+~fyNuJZjj6DRO>wT$TkX*O1_i>-+sJ@c()S&s!d9-~s<1pzy&e+!>a_HThKXP12_ZQMZyKC-K{CtyM{Bo;mZgQ^m
1<6}~5UPgq^XiPr*CujL2%4iSX0tZ1Pya_$F}P}+^Z4)>aO{LV-pYE7r^R*@GyIR|tv}o`By|5>y<nc+n-5yYO+g=Zo-jxDLawTybLTvoV^FUP#3
_%M*kh!6U$b{oyss2Hd{MBA6!WeCqaK_4^(yXrb%7n~J@y1}RFAvw6!*{V923)Bb`f}?&4HSH4`=K>`CMc0vqfMBDo<D7a1k*OwTqs|8nU<ovr!D
l8?1)uW|k@08!-N8Fvt`a#=wMpL5I#U#dm_p=C!_ZhkoxH?75WZXXj-<HgG0gW=cuo8&1~y4m}^pI({NL)U#IiB&|O!usJsem%mGtrmtRiY459>k
c;aUXAB-pdXCGWH_g275Ir*IJDi1#0fvjv<4Nq(kREX+H~U!E0bg;zk1XFy=ubA%>=Atnc1-KE6T!I>Uc%q|d=Ga2wz130!1%fSIBHY7B5MmAEae
Ws6I1?v0K4GdiU%pq*kygU=j6<G^ygngKi%I`$n#Gj-#&x7jQZgM^7bY34U(z5^Lvl?T37DxC$*X9x)Zxx2e#G0&Lc3_bD(^-y=?Tac5<Pp6DW4O
0m`||M#dc5lerGo9v1u6Krid4StxFH3%Mb%+my#FBbR&u-(}Ua_-z$(T<bBzZG&NIj2j7m`mS|(?^Euj`*i~G05y+x8MZ%$?o`$zkb{4(0+(jF$)
Bs+^n6|JOl~TaV{wYHu#X;xQ``?Sq+D`6-|70?huZuf1QTqrUp+pmbsOMwX>DF(8!=RCee1xx*`|*hJocR6d7P8CYuHo7*?3L-BH^?<GFKlv9s2P
c7cn>T`cy;MGPSyh`A#8@yDYcbQeTtYH@L1dyc}X|$TjBP7RKhgJ(scmR`F#AekQ0Ls2of`F$X7i1}7gwmP?qUF>-}RsQa1P`C#3ztgST$uZE9Bw
Gk6nd%sjU4ov&VVB)s+8cYq=o`X~Hv<>Wf6}oR`_b%lZJE$40WxZCqpWOFd=uTxFNgkqg2gcyj_?3+DH;}76z};$^_0{WsO>&O(-2v(viq$9nSog
m`{Ni`tl(_Eb&mY0r&=vK?uGp_lQ{z?rheB6cr(nKrnK_>~GPkBKt7DJjH{Wy4<l0~#BV4A*zg`eO?{&0_c=KD-ewK`Gv=(^U<QJf+-!{&%oouhE
5Bu2d0lPhb9_oSbK#XiNu`L#J?BdL{W1C`MUvhF@XsyWRXPU?C<(gX>Kh3q+_(fB*r?}RV?NmRmtL9rozl%KJ*Yy5X8t`@WI}H7IBq_gLLVov?C9
(I<da|QqqATRY?R(Vmh8Mn1<~Wh${#@~F>P5+455Yg;XPB5;vevSX!q-?AKX;PnpF!TFHK6y5J(EAR-$v~%n7a1${0#-`iR&+lW$3*+@#K+{|6@b
^_8#fvEMm*w_k>UI7o3@6-}Sju`sT;h>lfkUJl_wgA1A-BL#`=uiBaBr{RSa^ei^#+>Fn40MBMTDTZ9N(>x_TxK+Yc_j=qH$F#)|R=Ro@oa#PMrk
Kubv)YHAT+ix7b!D97UG1U%uslB)9d<$kiZ?IUznVFof>;vC$7U#8nE&mUqCveBy!uT!l$2jZ%y3Kw|dWBi0AJ-9=ub8-o`(Io)xeoi?osjlE-DT
H+Ir6-}H{S-V%*NE2Si-hNXF6Y#()@4AJ)nX9*cXB?@{dnB@lgl-9rfJg=l7hPFQ_|9TlVSx8-c&M95chf{e<an;2R^kAMrP09LwCE<cLvg+dSU}
G5j&a0{veE&fQ+cy+*OaUzzoe7weY!z_{Sgo=4H-PHy0RQI{W_|3S1I7m6Gy%;8V@UYY$)rq89g{WD&^Kl<w!v4bZ0^Sgq%eso#n`xDlEdtGAF<!
y;wZ%`cnDQybHm*y`t=_^NMov+cjJAWKk@AG~4pT7DR3&NnM
""",
}
